"""JSONL files as checked rows: demonstrations, preferences, prompts. Imports no torch.

Each reader reports all mistakes of its file in one InputError, before any model is loaded.
"""

import difflib
import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from stages import field_checks
from stages.base import InputError

Row = dict[str, Any]
Check = Callable[[Any], str | None]
"""What is wrong with a value ("is null"), or None."""

MAX_EQUAL_PAIRS = 0.05
"""Fraction of pairs with chosen == rejected above which something upstream is broken."""
SHOWN = 5
"""Row numbers listed per mistake."""
REMOVED = 20
"""Rows that a command is given for to remove them."""


class Mistakes:
    """Collects the mistakes of one file, so that they are told together."""

    def __init__(self, path: Path):
        self._path = path
        self._found: list[tuple[str, str, str]] = []
        self._unusable: set[int] = set()

    def add(self, code: str, problem: str, fix: str, unusable: Iterable[int] = ()) -> None:
        """Note a mistake; `unusable` are the rows without which it would be none."""
        self._found.append((code, f"{self._path} {problem}", fix))
        self._unusable.update(unusable)

    def raise_if_any(self) -> None:
        """Raises one InputError with a line per mistake; its code is that of the first."""
        if not self._found:
            return
        (code, problem, fix), *rest = self._found
        others = [str(InputError(*mistake)) for mistake in rest]
        raise InputError(code, problem, fix="\n".join([fix, *others]) + self._removal())

    def _removal(self) -> str:
        """The command that removes all unusable rows at once and keeps a copy, where they are few."""
        if not 0 < len(self._unusable) <= REMOVED:
            return ""
        rows = ";".join(f"{number}d" for number in sorted(self._unusable))
        return f" (all unusable rows at once: sed -i.bak '{rows}' {shlex.quote(str(self._path))})"


def read_rows(path: Path) -> list[Row]:
    """The objects of a JSONL file; row n is line n.

    Raises InputError PATH01 (no such file) or DATA03 (a line is no JSON object, or there is none).
    """
    mistakes = Mistakes(path)
    rows: list[Row] = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problem = f"line {number}: not JSON ({error.msg}, column {error.colno})"
            mistakes.add("DATA03", problem, "write one JSON object per line", [number])
            continue
        if not isinstance(row, dict):
            problem = f"line {number}: a JSON {field_checks.kind(row)}, expected an object"
            mistakes.add("DATA03", problem, 'write {"column": value, ...} on each line', [number])
            continue
        rows.append(row)
    mistakes.raise_if_any()
    if not rows:
        mistakes.add("DATA03", "holds no rows", "check the path, or run the script that makes the data")
        mistakes.raise_if_any()
    return rows


def read_demonstrations(path: Path) -> list[Row]:
    """Rows with `messages`, with `prompt, completion`, or with `text`; all of one kind.

    Raises InputError DATA01 (a column is missing), DATA02 (a value is unusable), and those of read_rows.
    """
    rows, mistakes = read_rows(path), Mistakes(path)
    if "messages" in rows[0]:
        checks: dict[str, Check] = {"messages": field_checks.answered_messages}
    elif "text" in rows[0] and not {"prompt", "completion"} & rows[0].keys():
        checks = {"text": field_checks.filled_text}
    else:
        checks = {"prompt": field_checks.filled_prompt, "completion": field_checks.filled_text}
    check_columns(rows, checks, mistakes)
    mistakes.raise_if_any()
    return rows


def read_preferences(path: Path) -> dict[int, Row]:
    """The pairs of read_pairs by row number, without those whose two sides are equal, which are counted aloud."""
    pairs = read_pairs(path)
    kept = {number: row for number, row in enumerate(pairs, start=1) if not _is_equal_pair(row)}
    if len(kept) < len(pairs):
        dropped = len(pairs) - len(kept)
        print(f"{path}: dropped {dropped} of {len(pairs)} pairs whose two sides are equal", flush=True)
    return kept


def read_pairs(path: Path) -> list[Row]:
    """Rows with `prompt, chosen, rejected` and, in all or none, `margin`; row n is line n.

    Other columns are let through; the report on the reward model reads `source`, where a pair comes from.

    Raises InputError DATA01, DATA02, DATA05 (too many equal pairs), and those of read_rows.
    """
    rows, mistakes = read_rows(path), Mistakes(path)
    checks: dict[str, Check] = {
        "prompt": field_checks.prompt,
        "chosen": field_checks.text,
        "rejected": field_checks.text,
    }
    if any("margin" in row for row in rows):
        checks["margin"] = field_checks.finite_number
    check_columns(rows, checks, mistakes)
    equal = [number for number, row in enumerate(rows, start=1) if _is_equal_pair(row)]
    if len(equal) > MAX_EQUAL_PAIRS * len(rows):
        problem = f"'chosen' equals 'rejected' in {len(equal)} of {len(rows)} rows ({listed(equal)})"
        mistakes.add("DATA05", problem, "check what wrote the file, then remove those rows")
    mistakes.raise_if_any()
    return rows


def without_equal_pairs(rows: Sequence[Row]) -> list[Row]:
    """The rows that are no pairs, or pairs whose sides differ."""
    return [row for row in rows if not _is_equal_pair(row)]


def read_prompts(path: Path) -> list[Row]:
    """Rows with `prompt` and any other columns, which every row has; reward functions read them.

    Raises InputError DATA01, DATA02, and those of read_rows.
    """
    rows, mistakes = read_rows(path), Mistakes(path)
    columns = dict.fromkeys(column for row in rows for column in row)
    checks: dict[str, Check] = {
        "prompt": field_checks.filled_prompt,
        **{c: field_checks.anything for c in columns if c != "prompt"},
    }
    check_columns(rows, checks, mistakes)
    mistakes.raise_if_any()
    return rows


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError("PATH01", f"no file {path}", fix="correct the path, or create it") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError("DATA03", f"{path} line {line}: not UTF-8", fix="save the file as UTF-8") from error
    # Not splitlines(): JSON strings may hold characters such as U+2028 that it takes for line ends.
    return text.rstrip().split("\n") if text.strip() else []


def check_columns(rows: Sequence[Row], checks: dict[str, Check], mistakes: Mistakes) -> None:
    """Adds DATA01 for each column that rows lack, and DATA02 for each thing that is wrong with its values."""
    for column, check in checks.items():
        missing = [number for number, row in enumerate(rows, start=1) if column not in row]
        if missing:
            _add_missing(column, checks, missing, rows[missing[0] - 1], mistakes)
        wrong: dict[str, list[int]] = {}
        for number, row in enumerate(rows, start=1):
            problem = check(row[column]) if column in row else None
            if problem:
                wrong.setdefault(problem, []).append(number)
        for problem, numbers in wrong.items():
            told = f"{place(numbers)}: '{column}' {problem}{such(numbers)}"
            mistakes.add("DATA02", told, "correct or remove them", numbers)


def _add_missing(column: str, known: Iterable[str], missing: Sequence[int], row: Row, mistakes: Mistakes) -> None:
    candidates = [name for name in row if name not in set(known)]
    nearest = difflib.get_close_matches(column, candidates, n=1, cutoff=0.6)
    problem = f"{place(missing)}: no field '{column}'{such(missing)}. Found: {', '.join(row) or 'nothing'}"
    if nearest:
        problem += f". Did you mean '{nearest[0]}'?"
    mistakes.add("DATA01", problem, f"rename '{nearest[0]}' to '{column}'" if nearest else f"add '{column}'")


def place(numbers: Sequence[int]) -> str:
    """Where a mistake is first found."""
    return f"row {numbers[0]}"


def such(numbers: Sequence[int]) -> str:
    """How often it is found, or '' when once."""
    return f" ({len(numbers)} such rows: {listed(numbers)})" if len(numbers) > 1 else ""


def listed(numbers: Sequence[int]) -> str:
    """The first of these row numbers."""
    return ", ".join(map(str, numbers[:SHOWN])) + (", ..." if len(numbers) > SHOWN else "")


def _is_equal_pair(row: Row) -> bool:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    return isinstance(chosen, str) and isinstance(rejected, str) and chosen.strip() == rejected.strip()
