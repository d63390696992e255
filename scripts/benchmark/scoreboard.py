"""What a row of docs/reliability.md is: a promise, its target, and the function that measures it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """What a measurement found."""

    found: str
    """The number beside the target, such as `0 bad of 300`."""
    passed: bool
    """Whether it meets the target."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Plain data for whoever wants to look closer: seeds, failures, seconds."""


@dataclass(frozen=True)
class Row:
    """One promise with its measurement."""

    promise: str
    """One line."""
    target: str
    """The number that was asked for."""
    measure: Callable[[Path, bool], Figure]
    """(empty folder to work in, quick) -> figure. Quick is small enough for the test suite and may fail as the
    whole one does; a row that cannot be made small is left out of the suite by `in_suite`."""
    in_suite: bool = True
    """Whether the quick measurement is one of the tests."""


def keep(folder: Path, name: str, figure: Figure) -> None:
    """Write a figure where `table` finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(asdict(figure), indent=2), encoding="utf-8")


def kept(folder: Path, name: str) -> Figure | None:
    """The figure that was measured last, if any."""
    file = folder / f"{name}.json"
    return Figure(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
