"""`rlhf ckpt ls|verify|diff|prune RUN`: what a run has saved and what of it can be trusted. Imports no torch."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline.checkpoints import CheckpointManager, Found, removed
from pipeline.config import STAGES
from pipeline.drift import obstacle
from pipeline.hashing import FileHashes
from pipeline.identity import Change, Identity, changes
from pipeline.lineage import inputs_of
from pipeline.locks import chain_lock
from pipeline.problems import EXIT_STORAGE
from pipeline.rundir import RunDir, StageDir
from pipeline.seals import damages
from stages.base import InputError

app = typer.Typer(help="Look at the checkpoints of a run.", no_args_is_help=True)
console = Console()

Run = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run, such as runs/imdb_smollm2.")]
OneStage = Annotated[str | None, typer.Option("--stage", metavar="|".join(STAGES), help="Only this stage.")]


@app.command()
def ls(run_dir: Run, stage: OneStage = None) -> None:
    """List every checkpoint, whether it is complete, and which one its stage would go on from. Reads every file."""
    table = Table(title=str(run_dir))
    for column in ("stage", "step", "age", "bytes", "state"):
        table.add_column(column, justify="right" if column in ("step", "age", "bytes") else "left", overflow="fold")
    for folder, checkpoints in _stages(RunDir.open(run_dir), stage):
        found = checkpoints.all()
        taken = _taken(folder, found)
        for one in found:
            state = one.problems[0] if one.problems else "complete, a resume takes it" if one is taken else "complete"
            size = f"{one.seal.size:,}" if one.seal else "-"
            table.add_row(folder.path.name, str(one.step), _age(one), size, state)
    if table.row_count:
        console.print(table)
    else:
        _say(f"{run_dir} has no checkpoints")


@app.command()
def verify(run_dir: Run, stage: OneStage = None) -> None:
    """Compare every file of every checkpoint and final model with what was written; exit code 5 if one differs."""
    damaged: list[str] = []
    looked_at = 0
    for folder, checkpoints in _stages(RunDir.open(run_dir), stage):
        for one in checkpoints.all():
            looked_at += 1
            damaged += one.problems
        if folder.finished:
            looked_at += 1
            damaged += _damaged_final(folder)
    for problem in damaged:
        _say(f"damaged: {problem}")
    _say(f"{run_dir}: {looked_at} checkpoints and final models, {len(damaged)} damages found")
    raise typer.Exit(EXIT_STORAGE if damaged else 0)


@app.command()
def diff(
    run_dir: Run,
    stage: Annotated[str | None, typer.Argument(metavar=f"[{'|'.join(STAGES)}]", help="Default: all.")] = None,
    between: Annotated[
        tuple[int, int] | None, typer.Option(metavar="STEP STEP", help="Compare these two checkpoints of the stage.")
    ] = None,
) -> None:
    """Show field by field what changed between a stage's newest checkpoint and the run's config, data and models."""
    run = RunDir.open(run_dir)
    for folder, checkpoints in _stages(run, stage):
        found = [one for one in checkpoints.all() if one.seal]
        if between:
            old, new = (_of_step(found, step, folder) for step in between)
            _show(f"{old.path} -> {new.path.name}", changes(old.seal.identity, new.seal.identity), new.seal.identity)
        elif found:
            current = inputs_of(run, run.config(), folder.path.name).identity
            _show(f"{found[0].path} -> {run.config_file}", changes(found[0].seal.identity, current), current)


@app.command()
def prune(
    run_dir: Run,
    stage: OneStage = None,
    keep: Annotated[int, typer.Option(min=1, help="Newest complete checkpoints to keep, per stage.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove all but the newest complete checkpoints; the one that a resume takes is never removed."""
    run, freed = RunDir.open(run_dir), 0
    with chain_lock(run.path):
        for _, checkpoints in _stages(run, stage):
            for one in _to_remove(checkpoints.all(), keep):
                size = one.size_on_disk() if dry_run else removed(one)
                _say(f"{'would remove' if dry_run else 'removed'} {one.path}: {size:,} bytes")
                freed += size
            if not dry_run:
                checkpoints.sweep()
    _say(f"{run_dir}: {freed:,} bytes {'would be ' if dry_run else ''}freed")


def _stages(run: RunDir, only: str | None) -> Iterator[tuple[StageDir, CheckpointManager]]:
    if only is not None and only not in STAGES:
        raise InputError("RUN03", f"no stage '{only}'; found {', '.join(STAGES)}", fix="name one of these")
    for name in STAGES if only is None else (only,):
        folder = run.stage(name)
        yield folder, CheckpointManager(folder.checkpoints, keep=1, tell=_say)


def _taken(folder: StageDir, found: list[Found]) -> Found | None:
    """The checkpoint that an interrupted stage goes on from; a finished one goes on from none."""
    return None if folder.finished else next((one for one in found if not one.problems), None)


def _to_remove(found: list[Found], keep: int) -> list[Found]:
    """All but the newest complete ones; nothing where none is complete, since a person may want to look at it."""
    kept = [one for one in found if not one.problems][:keep]
    return [one for one in found if one not in kept and not one.newer] if kept else []


def _damaged_final(folder: StageDir) -> list[str]:
    manifest = folder.manifest
    files = manifest.get("final_files")
    if files:
        return list(damages(folder.final, {name: tuple(file) for name, file in files.items()}, FileHashes()))
    expected = manifest.get("final_hash")
    whole = expected is None or (folder.final.is_dir() and FileHashes().folder(folder.final) == expected)
    return [] if whole else [f"{folder.final}: files differ from those that stage {folder.path.name} wrote"]


def _of_step(found: list[Found], step: int, folder: StageDir) -> Found:
    for one in found:
        if one.step == step:
            return one
    there = ", ".join(str(one.step) for one in found) or "none"
    problem = f"{folder.path} has no readable checkpoint of step {step}; found {there}"
    raise InputError("RUN04", problem, fix="name two of these, and the stage")


def _show(title: str, found: list[Change], identity: Identity) -> None:
    _say(f"{title}: {len(found)} changes")
    for change in found:
        reason = obstacle(change, identity)
        _say(f"    {change}" + (f"  ({reason}; cannot be allowed)" if reason else ""))


def _age(one: Found) -> str:
    if one.seal is None:
        return "-"
    minutes = max(0, int((datetime.now(UTC) - datetime.fromisoformat(one.seal.created)).total_seconds())) // 60
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60:02d} min"


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
