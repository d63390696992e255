"""Prompts in an order that is a function of (seed, global episode index) alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.base import InputError
from stages.data import listed
from stages.ppo.config import PPOConfig


def require_short(
    ids: Sequence[Sequence[int]], config: PPOConfig, path: Path, numbers: Sequence[int] | None = None
) -> None:
    """Raises InputError LEN02 for prompts over `max_prompt_tokens`; `numbers` are the prompts' rows in the file."""
    numbers = numbers or range(1, len(ids) + 1)
    long = [n for n, prompt in zip(numbers, ids, strict=True) if len(prompt) > config.max_prompt_tokens]
    if long:
        raise InputError(
            "LEN02",
            f"{path}: {len(long)} of {len(ids)} prompts are longer than ppo.max_prompt_tokens "
            f"{config.max_prompt_tokens} (rows {listed(long)})",
            fix=f"set ppo.max_prompt_tokens={max(map(len, ids))}, or shorten them",
        )


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of one rollout; every field has one entry per completion."""

    episodes: Sequence[int]
    """Global indices: the n-th completion ever sampled in this run."""
    ids: Sequence[Sequence[int]]
    texts: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    """The other columns of the data rows, for reward functions."""

    def rows(self, which: slice) -> "PromptBatch":
        """Neighbouring ones of them."""
        return self.chosen(range(*which.indices(len(self.ids))))

    def chosen(self, rows: Sequence[int]) -> "PromptBatch":
        """Those at the given places."""
        columns = {name: [values[r] for r in rows] for name, values in self.columns.items()}
        fields = ([values[r] for r in rows] for values in (self.episodes, self.ids, self.texts))
        return PromptBatch(*fields, columns)


@dataclass(frozen=True)
class PromptSet:
    """All prompts of a data file, tokenised."""

    ids: Sequence[Sequence[int]]
    texts: Sequence[str]
    columns: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(self.ids)

    def shuffled(self, seed: int, first: int, count: int) -> PromptBatch:
        """Episodes first .. first + count - 1; each pass over the data has an order of its own."""
        episodes = range(first, first + count)
        orders = {e: self._order(seed, e) for e in {i // len(self) for i in episodes}}
        return self._batch(episodes, [int(orders[i // len(self)][i % len(self)]) for i in episodes])

    def first(self, count: int, skip: int = 0) -> PromptBatch:
        """Rows skip .. skip + count - 1 in file order, for evaluation."""
        rows = range(min(skip, len(self)), min(skip + count, len(self)))
        return self._batch(rows, rows)

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(key=[seed, 2**32 + epoch])).permutation(len(self))

    def _batch(self, episodes: Sequence[int], rows: Sequence[int]) -> PromptBatch:
        columns = {name: [values[r] for r in rows] for name, values in self.columns.items()}
        return PromptBatch(list(episodes), [self.ids[r] for r in rows], [self.texts[r] for r in rows], columns)
