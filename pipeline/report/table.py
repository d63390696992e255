"""The result table: which numbers, in which units and digits. Used by the terminal and by the page."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from pipeline.report.reading import section

MODELS = {"base": "base", "sft": "SFT", "ppo": "PPO"}
STAGES = {"sft": "SFT", "reward_model": "reward model", "ppo": "PPO", "evaluation": "evaluation"}
MISSING = "–"


@dataclass(frozen=True)
class Column:
    """One metric of the held-out evaluation."""

    metric: str
    title: str
    unit: str
    digits: int


COLUMNS = (
    Column("judge", "judge", "fraction positive", 3),
    Column("score", "score", "reward", 2),
    Column("kl", "KL to SFT", "nats per completion", 2),
    Column("length", "length", "tokens", 1),
    Column("stopped_fraction", "stopped", "fraction", 2),
    Column("distinct_2", "distinct-2", "fraction", 3),
)


@dataclass(frozen=True)
class Cell:
    """A value and its standard error as shown; the error is empty when it is unknown."""

    value: str
    error: str = ""

    def __str__(self) -> str:
        return f"{self.value} ± {self.error}" if self.error else self.value


def columns(results: Mapping[str, Any]) -> list[Column]:
    """The columns that at least one model has a value for (there is no judge without a judge function)."""
    measured = section(results, "models").values()
    return [column for column in COLUMNS if any(section(metrics, column.metric) for metrics in measured)]


def rows(results: Mapping[str, Any]) -> list[tuple[str, list[Cell]]]:
    """(model, cells of `columns`) for base, SFT and PPO, as far as they were evaluated."""
    shown = columns(results)
    models = section(results, "models")
    return [
        (title, [_cell(section(models, model, column.metric), column.digits) for column in shown])
        for model, title in MODELS.items()
        if model in models
    ]


def reward_model_line(results: Mapping[str, Any]) -> str:
    """Held-out accuracy with its interval beside the accuracy of "longer is better"; empty without one."""
    quality = section(results, "reward_model")
    if not quality:
        return ""
    low, high = number(quality.get("accuracy_low"), 3), number(quality.get("accuracy_high"), 3)
    return (
        f"reward model accuracy {number(quality.get('accuracy'), 3)} (95 % interval {low} to {high}, "
        f'n = {quality.get("n", MISSING)}); "longer is better" {number(quality.get("length_baseline"), 3)}'
    )


def stage_line(results: Mapping[str, Any]) -> str:
    """Wall time and peak memory of each stage; empty without stages."""
    stages = section(results, "stages")
    costs = [(title, section(stages, stage)) for stage, title in STAGES.items() if stage in stages]
    return "\n".join(
        f"{title}: {duration(cost.get('seconds'))}, {memory(cost.get('peak_bytes'))} peak" for title, cost in costs
    )


def result_table(results: Mapping[str, Any]) -> Table | Text:
    """The table printed at the end of a run, from the content of results.json; fits 80 characters.

    What stands below it is all there is before the policies are evaluated.
    """
    footer = "\n".join(line for line in (reward_model_line(results), stage_line(results)) if line)
    if not rows(results):
        return Text(footer)
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        pad_edge=False,
        caption=Text(footer),
        caption_justify="left",
    )
    table.add_column("")
    for column in columns(results):
        table.add_column(Text(f"{column.title}\n{_narrow(column.unit)}"), justify="right", overflow="fold")
    for model, cells in rows(results):
        table.add_row(Text(model, style="bold"), *(_styled(cell) for cell in cells))
    return table


def number(value: Any, digits: int) -> str:
    """A dash for nothing; a diverged value stays visible as nan or inf."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return MISSING
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if math.isfinite(value) and float(text) == 0 else text


def duration(seconds: Any) -> str:
    """`42 s`, `3 min 07 s` or `2 h 05 min`."""
    if number(seconds, 0) == MISSING or not math.isfinite(seconds):
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def memory(size: Any) -> str:
    """Bytes as GB (10^9)."""
    return MISSING if number(size, 0) == MISSING else f"{number(size / 1e9, 2)} GB"


def _cell(metric: Mapping[str, Any], digits: int) -> Cell:
    error = number(metric.get("standard_error"), digits)
    return Cell(number(metric.get("value"), digits), "" if error == MISSING else error)


def _styled(cell: Cell) -> Text:
    return Text.assemble(cell.value, (f"±{cell.error}" if cell.error else "", "dim"))


def _narrow(unit: str) -> str:
    return unit.replace(" per ", "\nper ").replace("fraction positive", "positive")
