"""A tiny stage on two real hosts out of namespaces: started, disturbed, watched to its end, gone on with."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoints import CheckpointManager
from pipeline.rundir import RunDir, StageDir
from scripts.benchmark.killing import ENVIRONMENT, LONGEST, rlhf
from scripts.benchmark.small_disk import small_disk
from tests.multinode.hosts import Hosts, wait_for

NAME = "tiny"
STAGES = {
    "sft": ("sft.checkpoint_every=1", "sft.max_steps={many}"),
    "reward_model": ("sft.enabled=false", "reward_model.checkpoint_every=1", "reward_model.max_steps={many}"),
    "ppo": (
        *("sft.enabled=false", "reward_model.enabled=false", "reward=[{{function: scripts/prepare_tiny.py:good}}]"),
        *("evaluation.judge=null", "ppo.checkpoint_every=1", "ppo.steps={few}", "ppo.max_empty_fraction=1"),
    ),
}
"""Settings for each stage; iterations of PPO take longer than steps of the others."""
_DISK_BYTES = 256 << 20
_LEFT_SECONDS, _LOOK = 300.0, 0.2
_RAISES = """\
import signal
import sys


def fail(*unused):
    raise RuntimeError("a fault on purpose")


if "stage" in sys.orig_argv:
    signal.signal(signal.SIGUSR1, fail)
"""
"""A module that Python imports by itself: SIGUSR1 makes a stage raise wherever it is."""


@dataclass(frozen=True)
class Fault:
    """What is done to the second host, or to `rlhf run` on the first, and what is to follow."""

    told: str
    do: Callable[["Trial"], object]
    code: int
    """Exit code of `rlhf run` that tells what happened."""
    undo: Callable[["Trial"], object] = lambda trial: None
    before: bool = False
    """Whether it is there before the start."""
    limit: float = 10.0
    """Seconds in which all has to have ended."""
    tracebacks: int = 0
    """Tracebacks that a person is to see."""
    settings: tuple[str, ...] = ()
    """Further settings of the run."""


@dataclass(frozen=True)
class Outcome:
    """What was seen of a fault."""

    code: int
    seconds: Mapping[str, float]
    """From the fault, or the start, to the end of all `ranks`, of `rlhf run` and of every process on the `hosts`."""
    message: str
    tracebacks: int
    sealed: int
    """Step of the newest checkpoint before the fault."""
    kept: int
    """Step of the newest one after it that is complete to the byte."""

    def misses(self, fault: Fault) -> Iterator[str]:
        """What was promised and not found."""
        if self.code != fault.code:
            yield f"exit code {self.code}, not {fault.code}"
        if "hosts" not in self.seconds:
            yield "processes are left"
        elif not fault.before and self.seconds["ranks"] > fault.limit:
            yield f"ranks not over in {fault.limit:g} s"
        if self.tracebacks != fault.tracebacks:
            yield f"{self.tracebacks} tracebacks, not {fault.tracebacks}"
        if self.kept < self.sealed:
            yield f"the checkpoint of step {self.sealed} is lost"


@dataclass
class Trial:
    """One run folder on a disk that both hosts share."""

    hosts: Hosts
    work: Path
    name: str
    stage: str
    settings: tuple[str, ...]

    @property
    def disk(self) -> Path:
        """A file system of its own."""
        return self.work / "disk"

    @property
    def folder(self) -> StageDir:
        """Where the stage keeps its records."""
        return RunDir(self.disk / self.name / NAME).stage(self.stage)

    def play(self, fault: Fault) -> Outcome:
        """Start or go on, disturb after the next checkpoint, watch, mend."""
        sealed, output = self.newest(every_byte=False), self.work / f"{self.name}.txt"
        if fault.before:
            fault.do(self)
        said, began, job = _size(output), time.monotonic(), self._start(*fault.settings)
        if not fault.before:
            self._until_saved(job, sealed + 1)
            began = time.monotonic()
            fault.do(self)
            sealed += 1
        seconds = self._ends(job, began)
        code = job.wait(LONGEST)
        printed = output.read_bytes()[said:].decode(errors="replace")
        fault.undo(self)
        return Outcome(
            code=code if code >= 0 else 128 - code,
            seconds=seconds,
            message=_told(*([] if fault.before else [self.folder.log.read_text(errors="replace")]), printed),
            tracebacks=printed.count("Traceback (most recent call last)"),
            sealed=sealed,
            kept=self.newest(every_byte=True),
        )

    def finish(self) -> str | None:
        """Play to the end; the hash of what was learned, None when it failed."""
        return self.folder.manifest.get("final_hash") if self._start().wait(LONGEST) == 0 else None

    def kill(self, host: int, pattern: str, number: int) -> None:
        """A signal to the oldest process of a host whose command line matches."""
        self.hosts.run(host, "pkill", f"-{int(number)}", "-o", "-f", pattern, check=True)

    def newest(self, every_byte: bool) -> int:
        """Step of the newest complete checkpoint, 0 = there is none."""
        store = CheckpointManager(self.folder.checkpoints, 1, tell=lambda _: None, every_byte=every_byte)
        return (store.latest() or (0,))[0]

    def _start(self, *more: str) -> subprocess.Popen:
        """`rlhf run` of the stage, typed on the first host."""
        where = (f"run.root={self.disk / self.name}", "--only", self.stage, "--nodes", str(self.work / "nodes"))
        command = self.hosts.command(0, *rlhf("run", "configs/tiny.yaml", *self.settings, *more, *where))
        environment = {**ENVIRONMENT, "PYTHONPATH": f"{self.work / 'site'}:{ENVIRONMENT['PYTHONPATH']}"}
        with (self.work / f"{self.name}.txt").open("ab") as output:
            streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            return subprocess.Popen(command, env=environment, **streams)

    def _until_saved(self, job: subprocess.Popen, step: int) -> None:
        wait_for(lambda: self.newest(every_byte=False) >= step or job.poll() is not None, LONGEST)
        if job.poll() is not None:
            raise RuntimeError(f"{self.name}: `rlhf run` ended before the fault, see {self.work}")

    def _ends(self, job: subprocess.Popen, began: float) -> dict[str, float]:
        """When what had ended, as seconds since then; what is left for too long is missing, and killed."""
        found: dict[str, float] = {}
        while len(found) < 3 and time.monotonic() < began + _LEFT_SECONDS:
            ended = job.poll() is not None
            lines = [line for i in range(self.hosts.count) for line in self.hosts.processes(i)]
            ranks = [line for line in lines if " stage " in line]
            over = {"ranks": not ranks, "run": ended, "hosts": ended and not lines}
            for name in (name for name, is_over in over.items() if is_over):
                found.setdefault(name, time.monotonic() - began)
            time.sleep(_LOOK)
        for i in range(self.hosts.count) if "hosts" not in found else ():
            self.hosts.run(i, "pkill", "-9", "-f", f"^{sys.executable}")
        return found


@contextmanager
def two_hosts(work: Path) -> Iterator[Hosts]:
    """Two hosts with a small disk in common; `nodes` is their hostfile."""
    (work / "nodes").write_text("node0 slots=1\nnode1 slots=1\n")
    (work / "site").mkdir()
    (work / "site" / "sitecustomize.py").write_text(_RAISES)
    with small_disk(work / "disk", _DISK_BYTES), Hosts(work / "hosts") as hosts:
        yield hosts


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _told(*texts: str) -> str:
    """The newest of the last lines that names an error, in the first text that has one, else the last line.

    A log on a disk that is full has none, but the terminal.
    """
    last = [[line.strip() for line in text.splitlines() if line.strip()][-2:] for text in texts]
    named = [line for lines in last for line in reversed(lines) if re.match(r"\[[A-Z]+\d\d\] |\w*Error: ", line)]
    return (named or last[0][::-1] or [""])[0]
