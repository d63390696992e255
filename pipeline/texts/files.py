"""The rows of a data file with their places, and which of them are looked at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.data import without_equal_pairs

CHARACTERS = 1_500_000
"""Text of a file that is tokenised, about a second's worth; of more, rows are taken at even distances."""
LONGEST = 200
"""Longest prompts that are looked at in any case: one of them can stop a run."""

Row = Mapping[str, Any]
Numbered = list[tuple[int, Row]]


@dataclass(frozen=True)
class TextFile:
    """The usable rows of a file; `numbers` are their lines."""

    role: str
    """Such as `demonstrations.train`."""
    path: Path
    rows: Sequence[Row]
    numbers: Sequence[int]

    def looked_at(self, longest: int = 0) -> Numbered:
        """Every row of a small file; else some at even distances, and the `longest` longest ones."""
        sizes = [_characters(row) for row in self.rows]
        step = max(1, -(-sum(sizes) // CHARACTERS))
        chosen = set(range(0, len(self.rows), step))
        if step > 1 and longest:
            chosen |= set(sorted(range(len(sizes)), key=sizes.__getitem__)[-longest:])
        return [(self.numbers[i], self.rows[i]) for i in sorted(chosen)]


def text_file(role: str, path: Path, rows: Sequence[Row]) -> TextFile:
    """Those of all rows of a file that a stage takes up: pairs whose texts are equal are left out before."""
    taken = {id(row) for row in without_equal_pairs(rows)}
    numbered = [(number, row) for number, row in enumerate(rows, start=1) if id(row) in taken]
    return TextFile(role, path, [row for _, row in numbered], [number for number, _ in numbered])


def strings(value: Any) -> list[str]:
    """The texts in a value: itself, or the contents of messages."""
    if isinstance(value, str):
        return [value]
    return [m["content"] for m in value] if isinstance(value, list) else []


def texts_in(row: Row) -> list[str]:
    """The texts of a row that models read."""
    columns = ("messages", "prompt", "completion", "text", "chosen", "rejected")
    return [text for column in columns for text in strings(row.get(column))]


def _characters(row: Row) -> int:
    return sum(map(len, texts_in(row)))
