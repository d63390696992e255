"""One process per run folder. The system drops the lock of a process that died, however it died. Imports no torch."""

import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from stages.base import InputError

CHAIN, STAGE = ".lock", ".stage.lock"
"""Held by `rlhf run`, and by the process of a stage whoever started it."""
HELD_BY = "RLHF_LOCK_HELD_BY"
"""Environment variable through which `rlhf run` tells its own stages that the lock is theirs as well."""
PATIENCE = 1.5
"""Seconds for which the stage of a killed `rlhf run` is given time to die."""


@contextmanager
def chain_lock(run: Path) -> Iterator[None]:
    """Keep every other process out of a run folder, also the stage of a `rlhf run` that was killed.

    Raises:
        InputError: RUN01 another process has it.
    """
    with _exclusive(run, CHAIN):
        with _exclusive(run, STAGE, PATIENCE):
            pass
        os.environ[HELD_BY] = _holder(run / CHAIN)
        try:
            yield
        finally:
            del os.environ[HELD_BY]


@contextmanager
def stage_lock(run: Path) -> Iterator[None]:
    """The same for the process of one stage; its own `rlhf run` may hold the folder.

    Raises:
        InputError: RUN01 another process has it.
    """
    started_by = os.environ.get(HELD_BY)
    if started_by and started_by == _holder(run / CHAIN):
        with _exclusive(run, STAGE):
            yield
    else:
        with _exclusive(run, CHAIN), _exclusive(run, STAGE, PATIENCE):
            yield


@contextmanager
def _exclusive(run: Path, name: str, patience: float = 0.0) -> Iterator[None]:
    with (run / name).open("a+", encoding="utf-8") as file:
        _acquire(run, file, time.monotonic() + patience)
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        yield


def _acquire(run: Path, file: TextIO, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                file.seek(0)
                problem = f"{run} is in use by process {file.read().strip() or 'unknown'}"
                raise InputError("RUN01", problem, fix="wait for it, or give this run another run.name") from error
            time.sleep(0.05)
        except OSError as error:  # some network file systems
            note = f"note: {run} is on a file system without locks ({os.strerror(error.errno or 0)}); "
            print(note + "make sure that no second process works in it", flush=True)
            return None


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
