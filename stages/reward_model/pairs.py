"""Rendered preferences as what the reward model trains on: which pairs, read at which token. Imports no TRL."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.base import InputError
from stages.data import MAX_EQUAL_PAIRS, listed
from stages.render import Rendered, Renderer, Row
from stages.reward_model.config import RewardModelConfig

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt; the score of each is read at its last token, which is EOS."""

    chosen: Rendered
    rejected: Rendered
    margin: float | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longer side, prompt included."""
        return max(len(self.chosen.ids), len(self.rejected.ids))

    @property
    def equal(self) -> bool:
        """Whether the two sides are the same tokens, whatever their texts are."""
        return self.chosen.ids == self.rejected.ids


def render_pair(renderer: Renderer, row: Row) -> Pair:
    """A row with `prompt, chosen, rejected` and perhaps `margin`."""
    chosen, rejected = (renderer.pair(row["prompt"], row[side]) for side in SIDES)
    return Pair(chosen, rejected, float(row["margin"]) if "margin" in row else None)


def trainable(
    pairs: Sequence[Pair], config: RewardModelConfig, path: Path, numbers: Sequence[int] | None = None
) -> tuple[list[Pair], list[str]]:
    """The pairs that are trained on, and what is to be told of the others; `numbers` are the pairs' rows in the file.

    Raises InputError DATA04 (no pair is short enough), DATA05 (more than 5 % are equal token by token).
    """
    numbers = numbers or range(1, len(pairs) + 1)
    equal = [n for n, pair in zip(numbers, pairs, strict=True) if pair.equal]
    long = [n for n, pair in zip(numbers, pairs, strict=True) if pair.longest > config.max_length]
    if len(equal) > MAX_EQUAL_PAIRS * len(pairs):
        problem = f"the two sides are the same tokens in {len(equal)} of {len(pairs)} rows ({listed(equal)})"
        raise InputError("DATA05", f"{path}: {problem}", fix="remove those rows; their texts differ in nothing it sees")
    told = []
    if long:
        told.append(f"{path}: {len(long)} of {len(pairs)} pairs longer than {config.max_length} tokens are left out")
    if equal:
        told.append(f"{path}: {len(equal)} of {len(pairs)} pairs whose two sides are the same tokens are left out")
    kept = [pair for pair in pairs if not pair.equal and pair.longest <= config.max_length]
    if not kept:
        problem = f"{path}: no pair is within {config.max_length} tokens (the shortest has {_shortest(pairs)})"
        raise InputError("DATA04", problem, fix="raise reward_model.max_length")
    return kept, told


def _shortest(pairs: Sequence[Pair]) -> int:
    return min(pair.longest for pair in pairs)
