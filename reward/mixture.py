"""The score that PPO maximises: a weighted sum of terms, each kept for the log. Axis: B completions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from reward.base import RewardFunction
from reward.contract import LIMIT, scores_of


@dataclass(frozen=True)
class Texts:
    """A batch as reward functions see it; each column has one entry per completion."""

    prompts: Sequence[str]
    completions: Sequence[str]
    columns: Mapping[str, Sequence[Any]]


Read = Callable[[Any], Tensor]
"""Runs a score model over the completions of the batch as ids: scores [B]."""


class Source(Protocol):
    """Where the scores of a term come from."""

    def __call__(self, texts: Texts, read: Read) -> Tensor:
        """Scores float32 [B]."""


@dataclass(frozen=True)
class FunctionScores:
    """A Python function of the decoded texts; what it returns is checked on every call."""

    name: str
    function: RewardFunction
    arguments: Mapping[str, Any]
    limit: float = LIMIT
    """Largest magnitude of a score."""

    def __call__(self, texts: Texts, read: Read) -> Tensor:
        """Scores float32 [B]. Raises RewardError REW01 to REW04, see reward.contract."""
        named = {**texts.columns, **self.arguments}
        scores = scores_of(self.name, self.function, texts.prompts, texts.completions, named, self.limit)
        return torch.tensor(scores, dtype=torch.float32)


@dataclass(frozen=True)
class Term:
    """One part of the reward: `weight` times what `source` says."""

    name: str
    weight: float
    source: Source


class RewardMixture:
    """`score = sum_i weight_i source_i`."""

    def __init__(self, terms: Sequence[Term]):
        self.terms = tuple(terms)

    def __call__(self, texts: Texts, read: Read) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores float32 [B], and the unweighted terms by name. `read(model) -> [B]` runs a reward model."""
        scores = [term.source(texts, read).cpu() for term in self.terms]
        names = [term.name for term in self.terms]
        labels = [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names)]
        total = sum(term.weight * score for term, score in zip(self.terms, scores, strict=True))
        return total, dict(zip(labels, scores, strict=True))
