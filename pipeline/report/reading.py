"""Reads what a run left on disk. Every file may be missing or cut short; what could not be read is listed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FOLDERS = ("sft", "reward_model", "ppo", "evaluation")
REPORT_FORMAT = 1
"""Of report.json that this version reads, and stages/reward_model/report.py makes."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Series:
    """One metric over a stage: strictly increasing steps and their values."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps)


@dataclass(frozen=True)
class StageRecord:
    """The folder of one stage; empty when the stage did not run."""

    name: str
    manifest: Row = field(default_factory=dict)
    metrics: tuple[Row, ...] = ()
    samples: tuple[Row, ...] = ()
    report: Row = field(default_factory=dict)
    """What a reward model is measured at; of other stages empty."""
    alarms: tuple[Row, ...] = ()

    @property
    def present(self) -> bool:
        return bool(self.manifest or self.metrics or self.samples)

    def series(self, metric: str) -> Series:
        """The metric's last value at each step: a resumed run logs the steps after its checkpoint twice."""
        values = {row["step"]: float(row[metric]) for row in self.metrics if _is_number(row.get(metric))}
        steps = sorted(values)
        return Series(tuple(steps), tuple(values[step] for step in steps))


@dataclass(frozen=True)
class RunRecord:
    """Everything the report shows, as found in a run folder."""

    folder: Path
    run: Row
    config: Row
    config_text: str
    results: Row
    stages: Mapping[str, StageRecord]
    problems: tuple[str, ...]
    """One sentence per file that could not be read completely."""

    @property
    def name(self) -> str:
        return str(self.run.get("name") or self.folder.name)


def read_run(folder: Path) -> RunRecord:
    """Read the run folder `runs/<name>`; never raises for a missing or damaged file."""
    problems: list[str] = []
    config_text = _text(folder / "config.yaml")
    stages = {name: _read_stage(folder / name, problems) for name in FOLDERS}
    return RunRecord(
        folder=folder,
        run=_json(folder / "run.json", problems),
        config=_yaml(config_text, problems),
        config_text=config_text,
        results=_json(folder / "results.json", problems),
        stages=stages,
        problems=tuple(problems),
    )


def section(record: Mapping[str, Any], *path: str) -> Row:
    """The mapping at `path`, empty when any part of the way is missing or no mapping."""
    found: Any = record
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def _read_stage(folder: Path, problems: list[str]) -> StageRecord:
    return StageRecord(
        name=folder.name,
        manifest=_json(folder / "stage.json", problems),
        metrics=_rows(folder / "metrics.jsonl", problems),
        samples=_rows(folder / "samples.jsonl", problems),
        report=_report(folder / "report.json", problems),
        alarms=_rows(folder / "alarms.jsonl", problems),
    )


def _report(path: Path, problems: list[str]) -> Row:
    content = _json(path, problems)
    if content and content.get("format") != REPORT_FORMAT:
        problems.append(f"{_short(path)}: of another version of this program, left out")
        return {}
    return content


def _rows(path: Path, problems: list[str]) -> tuple[Row, ...]:
    """Rows with a step. A killed process leaves a torn line: last, or in the middle once it was resumed."""
    # Not splitlines(): it also splits at U+2028 and friends, which JSON may hold unescaped inside a text.
    lines = [line for line in _text(path).split("\n") if line.strip()]
    parsed = [_parse(line) for line in lines]
    rows = tuple(row for row in parsed if type(row.get("step")) is int)
    if len(rows) < len(lines):
        lost = len(lines) - len(rows)
        problems.append(f"{_short(path)}: {lost} of {len(lines)} lines unreadable, left out")
    return rows


def _json(path: Path, problems: list[str]) -> Row:
    text = _text(path)
    content = _parse(text)
    if text and not content:
        problems.append(f"{_short(path)}: not a JSON object, left out")
    return content


def _yaml(text: str, problems: list[str]) -> Row:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        problems.append("config.yaml: not YAML, shown as text only")
        return {}
    return content if isinstance(content, dict) else {}


def _parse(text: str) -> Row:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _text(path: Path) -> str:
    # A torn line may end inside a UTF-8 sequence.
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}" if path.parent.name in FOLDERS else path.name


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
