"""Starting a command and killing all of it at an instant, as a power cut or a scheduler would."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(REPOSITORY),
}
LONGEST = 3600.0
"""Seconds after which a command that should end is given up; a busy machine takes long."""


def rlhf(*arguments: str) -> list[str]:
    """The program of this checkout."""
    return [sys.executable, "-m", "pipeline.cli", *arguments]


def run(
    command: Sequence[str],
    log: Path,
    kill_after: float | None = None,
    cwd: Path = REPOSITORY,
    ready: Callable[[], bool] | None = None,
) -> int | None:
    """Exit code of a command whose output is appended to `log`; None when it was killed.

    That is `kill_after` seconds after its start, or after it was `ready`; every process that it started dies with it.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=cwd, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while ready and not ready() and process.poll() is None:
                time.sleep(0.005)
            return process.wait(kill_after)
        except subprocess.TimeoutExpired:
            return None
        finally:
            kill_session(process.pid)
            process.wait()


class Instants:
    """Uniform instants within the time that a command takes."""

    def __init__(self, seed: str, longest: float):
        self._random, self._longest = random.Random(seed), longest

    def draw(self) -> float:
        """Seconds after which to kill."""
        self._started, instant = time.monotonic(), self._random.uniform(0, self._longest)
        return instant

    def came_too_late(self) -> None:
        """The command ended before the instant that was drawn last: it takes less time than thought."""
        self._longest = time.monotonic() - self._started


def kill_session(leader: int) -> None:
    """SIGKILL the process group of `leader`, then whatever else is left of its session, until nothing is."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while left := list(_alive(leader)):
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {left} do not die")
        time.sleep(0.01)


def _alive(session: int) -> Iterator[int]:
    """Processes of a session that are no zombies."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            state, _, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(its_session) == session and state not in "ZX":
            yield int(entry.name)
