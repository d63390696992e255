"""Crashes and power cuts inside the save protocol: R3, R4."""

import shutil
from pathlib import Path

from pipeline.checkpoints import CheckpointManager
from pipeline.rundir import RunDir, StageDir
from scripts.benchmark import toy_run
from scripts.benchmark.power_loss import read_trace, recorded, states
from scripts.benchmark.scoreboard import Figure, Row
from stages.durable import CRASH_AT, replacing

POINTS = (
    "save.begun",
    "save.written",
    "seal.hashed",
    "seal.written",
    "seal.synced",
    "folder.synced",
    "folder.old_removed",
    "folder.renamed",
    "folder.committed",
    "prune.begun",
    "delete.renamed",
    "prune.done",
    "file.written",
    "file.synced",
    "file.replaced",
    "folder.written",
    "clear.manifest_removed",
)
KILLED = 137


def crash_everywhere(work: Path, quick: bool) -> Figure:
    """Die at each point of an attempt from nothing, in the middle, and of one that replaces a finished stage."""
    reference = toy_run.make(work / "reference")
    assert toy_run.run_stage(reference, work / "log") == 0
    expected = _outcome(reference)
    bad: list[str] = []
    recovered: set[str] = set()
    attempts = 0
    for point in POINTS:
        for kind in _kinds(point, quick):
            run = toy_run.make(work / f"{point}-{kind}")
            crashed, problem = _crash_and_repeat(run, point, kind, expected)
            attempts += crashed
            bad += [f"{point} {kind}: {problem}"] if problem else []
            recovered |= {point} if crashed and not problem else set()
            shutil.rmtree(run.path.parent.parent)
    missing = sorted(set(POINTS) - recovered)
    found = f"{len(recovered)} of {len(POINTS)} points recover ({attempts} crashes, {len(bad)} bad)"
    return Figure(found, not bad and not missing, {"bad": bad, "never reached": missing})


def _kinds(point: str, quick: bool) -> tuple[str, ...]:
    """In small, each point once: in the middle of a stage where it passes there."""
    if not quick:
        return "fresh", "middle", "forced"
    return ("forced",) if point == "clear.manifest_removed" else ("middle",)


def _crash_and_repeat(run: RunDir, point: str, kind: str, expected: dict) -> tuple[bool, str | None]:
    """Whether the point was reached, and what was wrong after the same command ran again."""
    log = run.path.parent / "log"
    options = ("--force",) if kind == "forced" else ()
    if kind == "forced" and toy_run.run_stage(run, log) != 0:
        return False, log.read_text()
    variable = toy_run.START_CRASHING if kind == "middle" else CRASH_AT
    code = toy_run.run_stage(run, log, {variable: point}, *options)
    if code == 0:
        return False, None  # this kind of attempt does not pass there
    if code != KILLED:
        return True, f"exit code {code}: {log.read_text()[-300:]}"
    code = toy_run.run_stage(run, log)
    if code != 0 or "Traceback" in log.read_text():
        return True, f"repeated: exit code {code}: {log.read_text()[-300:]}"
    return True, None if _outcome(run) == expected else f"another outcome: {_outcome(run)}"


def _outcome(run: RunDir) -> dict:
    """What must be the same however often the stage was killed: model, rows, names of everything on the disk."""
    folder = run.stage("sft")
    rows = (folder.path / "metrics.jsonl").read_text().count("\n")
    names = sorted(path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*"))
    return {"final": folder.manifest["final_hash"], "rows": rows, "names": names}


def lose_power_everywhere(work: Path, quick: bool) -> Figure:
    """After every single file operation, drop what was not synced, and read what is left."""
    stage = work / "disk" / "stage"
    trace = recorded(lambda mark: _save_and_finish(stage, mark), work / "disk", work / "trace")
    operations = read_trace(trace)
    bad: list[str] = []
    looked_at = 0
    for number, mode, marks in states(operations, work / "disk", work / "replayed"):
        looked_at += 1
        problem = _problem(StageDir(work / "replayed" / "stage"), marks)
        bad += [f"after operation {number}, {mode}: {problem}"] if problem else []
    found = f"{len(bad)} bad of {looked_at} states after {len(operations)} operations"
    return Figure(found, not bad and looked_at > 100, {"bad": bad[:20]})


def _save_and_finish(stage: Path, mark) -> None:
    folder = StageDir(stage)
    folder.write_manifest({"status": "running"})
    checkpoints = CheckpointManager(folder.checkpoints, keep=1)
    for step in (1, 2, 3):
        checkpoints.save(step, toy_run.writer(f"state {step}"))
        mark(f"saved {step}")
    for value in ("first", "second"):  # the second replaces the first
        with replacing(folder.final) as aside:
            toy_run.writer(value)(aside)
    folder.write_manifest({"status": "finished"})
    mark("finished")


def _problem(stage: StageDir, marks: list[str]) -> str | None:
    saved = max((int(mark.split()[1]) for mark in marks if mark.startswith("saved")), default=0)
    found = CheckpointManager(stage.checkpoints, keep=1, tell=lambda _: None).latest()
    if found and not toy_run.is_whole(found[1]):
        return f"a checkpoint of step {found[0]} was accepted that is not what was written"
    if (found[0] if found else 0) < saved:
        return f"step {saved} was committed, found {found}"
    finished = stage.finished
    if finished and not (stage.final.is_dir() and toy_run.is_whole(stage.final)):
        return "finished, but the final model is not whole"
    return "the end was lost" if "finished" in marks and not finished else None


ROWS: dict[str, Row] = {
    "R3": Row(
        "a crash at any named point of saving, pruning and finishing recovers to the same bits",
        "100 % of >= 12 points",
        crash_everywhere,
    ),
    "R4": Row(
        "power loss after any file operation leaves no bad state and no committed step lost",
        "0 bad states over all prefixes",
        lose_power_everywhere,
    ),
}
