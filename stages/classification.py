"""Labelled rows as demonstrations: a template asks about a text, its label's word is the answer. Imports no torch."""

import difflib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stages.data import (
    Check,
    Mistakes,
    Row,
    check_columns,
    place,
    read_demonstrations,
    read_rows,
    such,
)
from stages.field_checks import filled_text, kind
from stages.sft.config import ClassificationConfig, SFTConfig
from stages.template import Template

LABELS_SHOWN = 12
"""Labels of a file that an error message lists."""


def read_sft_rows(path: Path, sft: SFTConfig) -> list[Row]:
    """The demonstrations of a file as that section of the config reads them.

    Raises InputError as read_demonstrations does, or as read_classified.
    """
    return read_classified(path, sft.classification) if sft.classification else read_demonstrations(path)


def read_classified(path: Path, config: ClassificationConfig) -> list[Row]:
    """Rows with `text, label` as `prompt, completion, label`, where label is a key of `config.labels`.

    Raises InputError DATA01 (a column is missing), DATA02 (a value is unusable), DATA07 (a label that the config does
    not name), and those of read_rows.
    """
    rows, mistakes = read_rows(path), Mistakes(path)
    template = Template(config.prompt)
    checks: dict[str, Check] = {**dict.fromkeys(template.columns, _value), "text": filled_text, "label": _label}
    check_columns(rows, checks, mistakes)
    _check_labels(rows, config.labels, mistakes)
    mistakes.raise_if_any()
    answers = completions(config)
    labels = [label_key(row["label"]) for row in rows]
    return [
        {"prompt": template.fill(row), "completion": answers[label], "label": label}
        for row, label in zip(rows, labels, strict=True)
    ]


def completions(config: ClassificationConfig) -> dict[str, str]:
    """What the model is to write for each label."""
    template = Template(config.completion)
    return {label: template.fill({"label": word}) for label, word in config.labels.items()}


def label_key(value: Any) -> str:
    """A label of a JSON file as the config spells it: 1, 1.0 and "1" are "1", true is "true"."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) else str(value)


def absent_labels(rows: Iterable[Row], config: ClassificationConfig) -> list[str]:
    """Labels that the config names and no row has."""
    present = {row["label"] for row in rows}
    return [label for label in config.labels if label not in present]


def _check_labels(rows: list[Row], known: dict[str, str], mistakes: Mistakes) -> None:
    """Adds one DATA07 for all labels of the file that the config does not name."""
    found = {n: label_key(row["label"]) for n, row in enumerate(rows, 1) if "label" in row and not _label(row["label"])}
    unknown = [number for number, label in found.items() if label not in known]
    if not unknown:
        return
    first = found[unknown[0]]
    labels = sorted(set(found.values()))
    shown = ", ".join(labels[:LABELS_SHOWN]) + (", ..." if len(labels) > LABELS_SHOWN else "")
    problem = f"{place(unknown)}: label '{first}' is not in sft.classification.labels{such(unknown)}. Found: {shown}"
    # A word in the place of its label is the likeliest mistake of all.
    meant = [label for label, word in known.items() if word == first] or difflib.get_close_matches(first, known, n=1)
    if meant:
        problem += f". Did you mean '{meant[0]}'?"
    mistakes.add("DATA07", problem, f"correct the rows, or add '{first}' to sft.classification.labels")


def _label(value: Any) -> str | None:
    """A text, a whole number or a truth value."""
    if isinstance(value, str):
        return filled_text(value)
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return None
    if isinstance(value, float):
        return f"is {value}, expected a text or a whole number"
    return "is null" if value is None else f"is a {kind(value)}, expected a text or a whole number"


def _value(value: Any) -> str | None:
    """What a template can write: a text or a number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return "is null" if value is None else f"is a {kind(value)}, expected a text or a number"
    return None if isinstance(value, str) or math.isfinite(value) else f"is {value}, expected a finite number"
