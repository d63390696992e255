"""When two rows say the same: repeats within a file, rows of one file in another, pairs that contradict each other.

Imports no torch.
"""

import json
from collections.abc import Sequence
from typing import Any

from stages.data import Row, without_equal_pairs

_OF_A_ROW = ("messages", "text", "prompt", "completion", "chosen", "rejected")
"""Columns that make a row what it is; the others are what reward functions read."""


def repeated(rows: Sequence[Row]) -> list[int]:
    """Numbers of the rows that an earlier row of the same file equals."""
    seen: set[str] = set()
    found = []
    for number, key in enumerate(map(_key, rows), start=1):
        if key in seen:
            found.append(number)
        seen.add(key)
    return found


def shared(held_out: Sequence[Row], train: Sequence[Row]) -> list[int]:
    """Numbers of the held-out rows that are also training rows; a pair counts whichever side is chosen."""
    known = {_key(row) for row in train}
    return [number for number, row in enumerate(held_out, start=1) if _key(row) in known]


def contradicted(pairs: Sequence[Row]) -> list[int]:
    """Numbers of the pairs of which another row of the same prompt prefers the opposite."""
    known = {_json([pair["prompt"], pair["chosen"], pair["rejected"]]) for pair in without_equal_pairs(pairs)}
    opposite = (_json([pair["prompt"], pair["rejected"], pair["chosen"]]) for pair in pairs)
    return [number for number, verdict in enumerate(opposite, start=1) if verdict in known]


def _key(row: Row) -> str:
    if "chosen" in row:
        return _json([row["prompt"], sorted((row["chosen"], row["rejected"]))])
    return _json([row[column] for column in _OF_A_ROW if column in row])


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
