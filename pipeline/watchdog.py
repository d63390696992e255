"""Notices that a stage makes no progress, tells where it is, and ends it with exit code 6. Imports no torch.

A thread of the stage sees its own pulse, which suffices as long as Python runs. What Python cannot see, a stopped
process or C code that keeps the interpreter to itself, `rlhf run` sees in the file to which that thread copies it.
"""

import ctypes
import faulthandler
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from pathlib import Path

from pipeline.problems import EXIT_HANG
from stages.pulse import Pulse

HEARTBEAT = ".heartbeat"
"""File in a stage's folder."""
_LOOKS_PER_LIMIT, _SECONDS_PER_LOOK = 10, 1.0
_LATE = 5
"""Intervals that one look counts for at most, however busy the machine was."""
_GRACE = 3.0
"""Seconds by which `rlhf run` waits longer than the stage itself, which tells more."""
_DYING = 3.0
"""Seconds for the stacks of a stage that is ended from outside."""


@dataclass
class Silence:
    """For how long a pulse has not changed, seen by one who looks every `interval` seconds.

    A look that comes much too late counts little: Ctrl-Z and a sleeping machine stop the one who looks as well.
    """

    limit: float
    last: object = None
    seconds: float = 0.0
    looked: float = field(default_factory=time.monotonic)

    @property
    def interval(self) -> float:
        """Seconds between two looks."""
        return min(_SECONDS_PER_LOOK, self.limit / _LOOKS_PER_LIMIT)

    def begin(self) -> None:
        """Count from now on."""
        self.seconds, self.looked = 0.0, time.monotonic()

    def lasts(self, now: object) -> bool:
        """Look once; whether the limit is reached."""
        passed, self.looked = time.monotonic() - self.looked, time.monotonic()
        self.seconds = self.seconds + min(passed, _LATE * self.interval) if now == self.last else 0.0
        self.last = now
        return self.seconds >= self.limit


def report(stage: str, pulse: Pulse, seconds: float) -> str:
    """What a person is told of a stage that hangs."""
    return (
        f"[HANG01] rank {os.environ.get('RANK', 0)}: {stage} step {pulse.step}, {pulse.phase}: no progress for "
        f"{seconds:g} s; fix: its stacks show where it waits; raise run.hang_timeout_s if that is right"
    )


class _Imports(MetaPathFinder):
    """Finds no module: importing the libraries takes long on a slow disk, and each module is progress."""

    def __init__(self, pulse: Pulse):
        self._pulse = pulse

    def find_spec(self, *unused: object) -> None:
        self._pulse.beat()


@contextmanager
def watched(stage: str, pulse: Pulse, folder: Path, limit: float | None, fail: Callable[[str], None]) -> Iterator[None]:
    """Inside, this process ends with exit code 6 when `pulse` stands still for `limit` seconds; None = never.

    First it prints the report and the stacks of all threads to stderr and calls `fail` with the report.
    """
    faulthandler.enable()  # so that SIGABRT from outside prints the stacks, even without the interpreter
    if limit is None:
        yield
        return
    silence, over, imports = Silence(limit), threading.Event(), _Imports(pulse)
    folder.mkdir(parents=True, exist_ok=True)
    rank = os.environ.get("RANK", "0")
    heartbeat = folder / (HEARTBEAT if rank == "0" else f"{HEARTBEAT}.{rank}")

    def look() -> None:
        while not over.wait(silence.interval):
            _write(heartbeat, pulse)
            if silence.lasts(pulse.beats):
                told = report(stage, pulse, limit)
                print(told, file=sys.stderr, flush=True)
                faulthandler.dump_traceback(all_threads=True)
                with suppress(Exception):
                    fail(told)
                os._exit(EXIT_HANG)

    pulse.on_phase = lambda: _write(heartbeat, pulse)  # at once: what follows may never let the thread run again
    pulse.enter("loading", 0)
    thread = threading.Thread(target=look, name="watchdog", daemon=True)
    thread.start()
    sys.meta_path.insert(0, imports)
    try:
        yield
    finally:
        sys.meta_path.remove(imports)
        over.set()
        thread.join()
        heartbeat.unlink(missing_ok=True)


@dataclass(frozen=True)
class Watch:
    """What `rlhf run` needs to know to watch over a stage."""

    stage: str
    folder: Path
    limit: float | None
    """Seconds; None = no watch."""

    @contextmanager
    def over(self, end: Callable[[], None], begun: Callable[[], bool] = lambda: True) -> Iterator[list[str]]:
        """Inside, `end` a stage that has begun and whose heartbeat stands still; the list gets what was told of it."""
        told: list[str] = []
        if self.limit is None:
            yield told
            return
        silence, over = Silence(self.limit + _GRACE), threading.Event()
        heartbeat = self.folder / HEARTBEAT

        def look() -> None:
            known = None
            while not over.wait(silence.interval):
                now = _read(heartbeat)
                known = now or known  # the file goes before the process does
                if not begun():
                    silence.begin()
                elif silence.lasts(now):
                    told.append(report(self.stage, _pulse(known), self.limit))
                    end()
                    return

        thread = threading.Thread(target=look, name="watch", daemon=True)
        thread.start()
        try:
            yield told
        finally:
            over.set()
            thread.join()


def _write(file: Path, pulse: Pulse) -> None:
    with suppress(OSError):  # a full disk is no hang
        file.write_text(json.dumps({"phase": pulse.phase, "step": pulse.step, "beats": pulse.beats}))


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except OSError:
        return None


def _pulse(text: str | None) -> Pulse:
    try:
        return Pulse(**json.loads(text or "{}"))
    except ValueError:  # read in the middle of a write
        return Pulse()


def end_with_stacks(child: subprocess.Popen) -> None:
    """Let a child print its stacks and die; a stopped one has to go on for that."""
    with suppress(AttributeError, OSError):  # Linux only: a core file could be as large as the models
        resource.prlimit(child.pid, resource.RLIMIT_CORE, (0, 0))
    if child.poll() is None:
        _abort_where_it_is(child.pid)
        child.send_signal(signal.SIGCONT)
    try:
        child.wait(_DYING)
    except subprocess.TimeoutExpired:
        child.kill()


def _abort_where_it_is(pid: int) -> None:
    """SIGABRT for the main thread: any other could take it in a process that goes on, and this one would run ahead."""
    try:
        ctypes.CDLL(None).tgkill(pid, pid, signal.SIGABRT)
    except AttributeError:  # Linux only
        os.kill(pid, signal.SIGABRT)
