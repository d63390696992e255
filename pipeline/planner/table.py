"""The plan as tables for a person. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from pipeline.planner.costs import Device
from pipeline.planner.memory import StageMemory
from pipeline.planner.sharding import Split
from pipeline.planner.work import StageWork


@dataclass(frozen=True)
class StagePlan:
    """All that is known of a stage before it runs."""

    memory: StageMemory
    work: StageWork
    microbatch: int
    """Configured."""
    largest: int
    """That fits; 0 if none."""


def memory_table(plans: Sequence[StagePlan], split: Split) -> Table:
    """Role by role what a rank holds, and per stage the sum at its worst, when one phase is at work."""
    ranks = f"{split.ranks} rank{'s' if split.ranks > 1 else ''}"
    table = Table(title=f"Memory of one rank, GB ({ranks}, {split.name})")
    for name in ("stage", "role"):
        table.add_column(name)
    for name in ("trained", "weights", "gradients", "optimizer", "activations", "sum"):
        table.add_column(name, justify="right")
    for plan in plans:
        _add_stage(table, plan.memory)
    return table


def _add_stage(table: Table, memory: StageMemory) -> None:
    for index, row in enumerate(memory.rows):
        sizes = (row.share.weights, row.share.gradients, row.share.optimizer, row.activations)
        trained = f"{row.role.trained:,}" if row.role.trained else "-"
        cells = map(gigabytes, (*sizes, sum(sizes)))
        table.add_row(memory.stage if index == 0 else "", row.role.name, trained, *cells)
    worst = memory.worst
    kept = [sum(getattr(row.share, name) for row in memory.rows) for name in ("weights", "gradients", "optimizer")]
    kept[1] *= worst.gradients
    own = max(worst.parts, key=worst.parts.get)
    where = f"peak, {worst.name} ({own} {gigabytes(worst.parts[own])})"
    table.add_row("", where, "", *map(gigabytes, (*kept, worst.bytes, memory.peak)), style="bold")
    table.add_section()


def work_table(plans: Sequence[StagePlan], device: Device) -> Table:
    """Step by step what a rank sends and how long the device takes."""
    table = Table(title=f"One step on each rank, at most ({device.name})")
    columns = ("stage", "microbatch", "largest that fits", "sent, GB", "seconds", "of which")
    for name in columns:
        table.add_column(name, justify="left" if name in ("stage", "of which") else "right")
    for plan in plans:
        work = plan.work
        parts = "  ".join(f"{name} {seconds / work.total:.0%}" for name, seconds in work.seconds.items())
        largest = str(plan.largest) if plan.largest else "none"
        cells = (str(plan.microbatch), largest, gigabytes(work.sent), f"{work.total:.3g}", parts)
        table.add_row(plan.memory.stage, *cells)
    return table


def gigabytes(count: float) -> str:
    """10^9 bytes, with three digits; nothing for nothing."""
    if not count:
        return "-"
    size = count / 1e9
    return f"{size:,.0f}" if size >= 100 else f"{size:.3g}" if size >= 0.001 else "<0.001"
