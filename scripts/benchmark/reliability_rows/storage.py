"""Full disks, room before the start, what pruning keeps, and what durability costs: R16, R17, R26, R30."""

import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.checkpoints import CheckpointManager
from pipeline.config_loading import load_config
from pipeline.rundir import RunDir
from pipeline.storage import bytes_needed
from scripts.benchmark import tiny_files, toy_run
from scripts.benchmark.scoreboard import Figure, Row
from scripts.benchmark.small_disk import PAGE, fill, small_disk

EXIT_STORAGE = 5


def fill_up(work: Path, quick: bool) -> Figure:
    """Run a stage with one page of room, then two, until it ends well; then with a limit on the size of a file."""
    reference = toy_run.make(work / "reference")
    assert toy_run.run_stage(reference, work / "log") == 0
    expected = reference.stage("sft").manifest["final_hash"]
    bad: list[str] = []
    full = 0
    with small_disk(work / "disk", 8 << 20) as disk:
        skipped = "" if disk else "; no disk could be mounted here, size limits alone"
        for pages in range(0, 200, 4 if quick else 1) if disk else ():
            run = _interrupted(disk / f"run-{pages}")
            ballast = fill(disk, leave=pages * PAGE)
            ended = _stage(run, work / "log", None)
            ballast.unlink()
            full += ended != 0
            bad += [f"{pages} pages: {p}" for p in _problems(run, work / "log", ended, expected)]
            subprocess.run(["rm", "-rf", str(run.path.parent.parent)], check=True)
            if ended == 0:
                break
    for limit in range(PAGE, toy_run.WEIGHTS, 8192 if quick else 1024):
        run = _interrupted(work / f"limited-{limit}")
        ended = _stage(run, work / "log", limit)
        full += ended != 0
        bad += [f"files up to {limit} bytes: {p}" for p in _problems(run, work / "log", ended, expected)]
    return Figure(f"{full} full disks, {len(bad)} bad{skipped}", not bad and full > 3, {"bad": bad[:20]})


def _interrupted(root: Path) -> RunDir:
    """A toy stage that was killed with the checkpoints of steps 2 and 3 on the disk."""
    run = toy_run.make(root)
    assert toy_run.run_stage(run, root / "log", {toy_run.START_CRASHING: "save.begun"}) == 137
    return run


def _stage(run: RunDir, log: Path, file_limit: int | None) -> int:
    """Exit code of the stage's process."""
    if file_limit is None:
        return toy_run.run_stage(run, log)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, before[1]))
    try:
        return toy_run.run_stage(run, log)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _problems(run: RunDir, log: Path, ended: int, expected: str) -> Iterator[str]:
    """What was wrong with a stage that met a full disk, and with the same command once there is room."""
    folder, said = run.stage("sft"), log.read_text()
    kept = CheckpointManager(folder.checkpoints, 2, tell=lambda _: None).latest()
    if ended not in (0, EXIT_STORAGE):
        yield f"exit code {ended}: {said[-300:]}"
    if ended and said and not ("[DISK01]" in said and "free " in said and "bytes" in said):
        yield f"said {said[-300:]}"
    if "Traceback" in said:
        yield f"traceback: {said[-300:]}"
    if not kept or kept[0] < 3 or not toy_run.is_whole(kept[1]):
        yield f"checkpoint of step 3 is gone, found {kept}"
    partial = [path.name for path in folder.path.rglob(".tmp-*")]
    if partial:
        yield f"half-written {partial} left"
    if toy_run.run_stage(run, log) != 0 or folder.manifest.get("final_hash") != expected:
        yield f"with room again: {log.read_text()[-300:]}"


def refuse_early(work: Path, quick: bool) -> Figure:
    """`rlhf run` of a real tiny model on a disk that is too small, just large enough, and not writable."""
    base = tiny_files.model(work / "good")
    config = tiny_files.config(work / "config.yaml", base, work / "disk" / "runs")
    extra = ["sft.max_steps=4", "sft.checkpoint_every=1"]
    settings = ["reward_model.enabled=false", "ppo.enabled=false"]
    loaded = load_config(config, [*settings, *extra])
    needed = bytes_needed(loaded, RunDir(Path(loaded.run.root) / loaded.run.name))
    bad: list[str] = []
    sizes = {"too small": (needed * 9 // 10, False, "[DISK01]"), "read-only": (2 * needed, True, "[DISK02]")}
    if not quick:
        sizes["enough"] = (needed + (1 << 20), False, "Report:")
    for name, (size, read_only, said) in sizes.items():
        with small_disk(work / "disk", size, read_only) as disk:
            if disk is None:
                return Figure("no disk could be mounted here: not measured", True, {"skipped": True})
            done = _rlhf("run", str(config), *settings, *extra, "--only", "sft")
            output, code = done.stdout + done.stderr, 0 if name == "enough" else EXIT_STORAGE
            started = (disk / "runs/tiny/sft").exists()
            if done.returncode != code or said not in output or started != (name == "enough"):
                bad.append(f"{name}: exit code {done.returncode}, stage started {started}: {output[-500:]}")
    found = f"{len(sizes) - len(bad)} of {len(sizes)} disks judged rightly; estimate {needed:,} bytes"
    return Figure(found, not bad, {"bad": bad})


def _rlhf(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


KEEP = 3


def kill_in_prune(work: Path, quick: bool) -> Figure:
    """SIGKILL at a random instant after pruning began; the newest three and the best in them must be there."""
    draws, bad = random.Random(0), []
    kills = 15 if quick else 100
    reached = 0
    for number in range(kills):
        folder = work / f"run-{number}"
        checkpoints = CheckpointManager(folder, KEEP, tell=lambda _: None)
        for step in range(1, KEEP + 2):
            checkpoints.save(step, _many_files(step))
        if not _killed_while_pruning(folder, draws.random() * 0.004):
            continue
        reached += 1
        bad += [f"kill {number}: {problem}" for problem in _lost(folder)]
    found = f"{len(bad)} lost of {reached} kills inside pruning"
    return Figure(found, not bad and reached >= kills // 2, {"bad": bad, "kills": kills})


def _many_files(step: int):
    """A checkpoint of many files, so that removing it takes a while."""

    def write(folder: Path) -> None:
        toy_run.writer(f"state {step}")(folder)
        for number in range(100):
            (folder / f"part-{number}").write_text(str(step))

    return write


def _killed_while_pruning(folder: Path, delay: float) -> bool:
    """Whether the kill came while the process that saved one more was still removing what is old."""
    begun, begins = os.pipe()
    child = os.fork()
    if child == 0:
        checkpoints = CheckpointManager(folder, KEEP, tell=lambda _: None)
        prune = checkpoints._prune
        checkpoints._prune = lambda saved: (os.write(begins, b"x"), prune(saved))
        checkpoints.save(KEEP + 2, _many_files(KEEP + 2))
        os._exit(0)
    os.read(begun, 1)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(begun)
    os.close(begins)
    return ended == -signal.SIGKILL


def _lost(folder: Path) -> Iterator[str]:
    found = {one.step: one for one in CheckpointManager(folder, KEEP, tell=lambda _: None).all()}
    for step in range(3, KEEP + 3):
        one = found.get(step)
        if one is None or one.problems or not toy_run.is_whole(one.path):
            yield f"step {step} of the newest three: {one.problems if one else 'gone'}"
    checkpoints = CheckpointManager(folder, KEEP, tell=lambda _: None)
    checkpoints.save(KEEP + 3, _many_files(KEEP + 3))
    names = sorted(path.name for path in folder.iterdir())
    if names != [f"step-{step:06d}" for step in (4, 5, 6)]:
        yield f"the next save left {names}"


def price(work: Path, quick: bool) -> Figure:
    """Saves of 500 MB with and without hashing and waiting for the disk, in turn; medians of five."""
    size, rounds = (20 << 20, 3) if quick else (500 << 20, 5)
    content = os.urandom(size // 8)
    plain: list[float] = []
    sealed: list[float] = []
    for number in range(rounds):
        start = time.perf_counter()
        (work / f"plain-{number}").mkdir()
        _parts(content)(work / f"plain-{number}")
        plain.append(time.perf_counter() - start)
        os.sync()  # neither pays for the other's writing
        start = time.perf_counter()
        CheckpointManager(work / "sealed", 1).save(number, _parts(content))
        sealed.append(time.perf_counter() - start)
        subprocess.run(["rm", "-rf", str(work / f"plain-{number}")], check=True)
        os.sync()
    before, after = statistics.median(plain), statistics.median(sealed)
    added = (after - before) * (500 << 20) / size
    found = f"{after / before:.2f} x a plain save, {added:+.2f} s per 500 MB ({before:.2f} s -> {after:.2f} s)"
    return Figure(found, added <= 0.5, {"plain": plain, "sealed": sealed, "bytes": size})


def _parts(content: bytes):
    """Eight files of random bytes."""

    def write(folder: Path) -> None:
        for number in range(8):
            (folder / f"part-{number}").write_bytes(content)

    return write


ROWS: dict[str, Row] = {
    "R16": Row(
        "a full disk at any write: the checkpoint before is intact, nothing half-written stays, exit code 5",
        "0 bad",
        fill_up,
    ),
    "R17": Row(
        "too little room, or a folder that cannot be written, is refused before step 0",
        "all judged rightly",
        refuse_early,
        in_suite=False,
    ),
    "R26": Row("the newest k checkpoints and the best model survive a kill inside pruning", "0 of 100", kill_in_prune),
    "R30": Row("what hashing and waiting for the disk add to a save", "<= 0.5 s per 500 MB", price, in_suite=False),
}
