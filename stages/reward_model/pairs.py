"""Rendered preferences as what the reward model trains on: which pairs, read at which token. Imports no TRL."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stages.base import InputError
from stages.data import MAX_EQUAL_PAIRS, listed, read_preferences
from stages.render import Rendered, Renderer, Row, rendered
from stages.reward_model.config import RewardModelConfig

SIDES = ("chosen", "rejected")
SOURCE_CHARACTERS = 40


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt; the score of each is read at its last token, which is EOS."""

    chosen: Rendered
    rejected: Rendered
    margin: float | None = None
    number: int = 0
    """Its row in the file."""

    @property
    def longest(self) -> int:
        """Tokens of the longer side, prompt included."""
        return max(len(self.chosen.ids), len(self.rejected.ids))

    @property
    def equal(self) -> bool:
        """Whether the two sides are the same tokens, whatever their texts are."""
        return self.chosen.ids == self.rejected.ids


@dataclass(frozen=True)
class Preferences:
    """The pairs of a file that a reward model is trained or measured on."""

    path: Path
    rows: Mapping[int, Row]
    """All rows but those of equal sides, by number."""
    pairs: Sequence[Pair]

    def row(self, pair: Pair) -> Row:
        """What the file says of a pair."""
        return self.rows[pair.number]

    def sources(self) -> list[str] | None:
        """The column `source` of each pair as text, "none" where a row has none; None without the column."""
        if all(self.row(pair).get("source") is None for pair in self.pairs):
            return None
        return [_as_text(self.row(pair).get("source")) for pair in self.pairs]


def _as_text(source: object) -> str:
    if source is None:
        return "none"
    text = source if isinstance(source, str) else json.dumps(source, ensure_ascii=False)
    return text if len(text) <= SOURCE_CHARACTERS else f"{text[: SOURCE_CHARACTERS - 1]}…"


def read_trainable(renderer: Renderer, path: Path, config: RewardModelConfig) -> Preferences:
    """The pairs of a file that are trained on; the others are told.

    Raises InputError DATA04, DATA05 as `trainable` does, and those of read_pairs.
    """
    rows = read_preferences(path)
    found = rendered(rows.items(), lambda row: render_pair(renderer, row), path)
    numbered = [replace(pair, number=number) for number, pair in zip(rows, found, strict=True)]
    pairs, told = trainable(numbered, config, path, list(rows))
    for line in told:
        print(line, flush=True)
    return Preferences(path, rows, pairs)


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
