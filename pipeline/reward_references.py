"""The columns that metrics compare with, looked at before anything is loaded. Imports no torch."""

from collections.abc import Iterator
from typing import Any

from pipeline.config import PipelineConfig
from pipeline.data_checks import Rows
from pipeline.findings import Findings
from pipeline.problems import nearest
from reward.config import RewardTerm
from stages.base import InputError
from stages.data import Row, listed, such
from stages.field_checks import kind


def check_references(config: PipelineConfig, rows: Rows, found: Findings) -> None:
    """REW04: prompt data without the column that a metric compares with, or with nothing in it to compare with.

    DATA02: a value of it that is neither text, nor a list of texts, nor null. Rows with null are counted: the term does
    not apply to them.
    """
    comparing = [(i, term) for i, term in enumerate(config.reward) if term.reference and config.ppo.enabled]
    for index, term in comparing:
        named = {path: rows[role] for role, path in _files(config).items() if role in rows}
        mistakes = [reference_mistakes(index, term, path, of_file) for path, of_file in named.items()]
        found.errors += next(filter(None, mistakes), [])  # of one file: the other may have the same
        found.notes += [note for path, of_file in named.items() for note in _left_out(term, path, of_file)]


def reference_mistakes(index: int, term: RewardTerm, path: str, rows: list[Row]) -> list[InputError]:
    """What keeps the rows of a file from being compared with; `index` is the term's place in the config."""
    column = term.reference
    if column not in rows[0]:
        columns = [name for name in rows[0] if name != "prompt"]
        meant = nearest(column, columns)
        problem = f"{path} row 1: no column '{column}', which the reward term '{term.label}' compares with"
        fix = f"set reward.{index}.reference={meant}" if meant else f"add '{column}' to every row"
        return [InputError("REW04", f"{problem}; found {', '.join(columns) or 'none beside prompt'}", fix=fix)]
    values = [row[column] for row in rows]
    if all(value is None for value in values):
        problem = f"{path}: '{column}' is null in all {len(rows)} rows, so the reward term '{term.label}' never applies"
        return [InputError("REW04", problem, fix=f"write the texts to compare with, or remove reward.{index}")]
    return list(_unusable(path, column, values))


def _unusable(path: str, column: str, values: list[Any]) -> Iterator[InputError]:
    wrong: dict[str, list[int]] = {}
    for number, value in enumerate(values, start=1):
        told = None if value is None else _wrong(value)
        if told:
            wrong.setdefault(told, []).append(number)
    for told, numbers in wrong.items():
        problem = f"{path} row {numbers[0]}: '{column}' {told}, expected a text, a list of texts, or null"
        yield InputError("DATA02", problem + such(numbers), fix="correct or remove them")


def _wrong(value: Any) -> str | None:
    if isinstance(value, list):
        strange = [item for item in value if not isinstance(item, str)]
        return f"holds a {kind(strange[0])}" if strange else None if value else "is an empty list"
    return None if isinstance(value, str) else f"is a {kind(value)}"


def _left_out(term: RewardTerm, path: str, rows: list[Row]) -> Iterator[str]:
    empty = [number for number, row in enumerate(rows, start=1) if row.get(term.reference, "") is None]
    if 0 < len(empty) < len(rows):
        yield (
            f"{path}: '{term.reference}' is null in {len(empty)} of {len(rows)} rows ({listed(empty)}): "
            f"the reward term '{term.label}' does not apply to them"
        )


def _files(config: PipelineConfig) -> dict[str, str]:
    prompts = config.data.prompts
    named = {"prompts.train": prompts.train, "prompts.eval": prompts.eval} if prompts else {}
    return {role: path for role, path in named.items() if path}
