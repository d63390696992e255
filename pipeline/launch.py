"""The command of one stage and its run as a child process. Imports no torch."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from pipeline.redacted_output import redacted
from stages.redaction import redactor


def stage_command(stage: str, run_dir: Path) -> list[str]:
    """Arguments that run `stage` of the run in `run_dir`; the same line reruns it by hand."""
    return rlhf("stage", stage, str(run_dir))


def continue_command(config_file: Path, stage: str) -> list[str]:
    """Arguments that go on with the chain from `stage`."""
    return rlhf("run", str(config_file), "--from", stage)


def rlhf(*arguments: str) -> list[str]:
    """This program under this interpreter, whatever is on PATH."""
    return [sys.executable, "-m", "pipeline.cli", *arguments]


def printable(command: Sequence[str]) -> str:
    """The command quoted for a shell."""
    return shlex.join(command)


def run_logged(command: Sequence[str], log: Path, append: bool) -> int:
    """Run a child, its output going to the terminal at once and line by line to `log`; its exit code.

    The child never outlives this process: when this one is stopped, so is the child.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("ab" if append else "wb") as file, _stoppable():
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
        try:
            _copy(child.stdout, file)
            code = child.wait()
        except BaseException:
            _stop(child)
            raise
    return code if code >= 0 else 128 - code


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines of a log."""
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]


def _copy(source: BinaryIO, log: BinaryIO) -> None:
    """Pass text on, without secrets; the log gets whole lines, a progress bar's only in its last state."""
    pending = ""
    for text in redacted(source, redactor()):
        sys.stdout.write(text)
        sys.stdout.flush()
        *lines, pending = (pending + text).split("\n")
        log.writelines(_settled(line) for line in lines)
        log.flush()
    if pending:
        log.write(_settled(pending))


def _settled(line: str) -> bytes:
    return line.rstrip("\r").rpartition("\r")[2].encode("utf-8", errors="replace") + b"\n"


@contextmanager
def _stoppable() -> Iterator[None]:
    """A polite kill becomes an exception, so that the child is stopped as well."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _stop(child: subprocess.Popen) -> None:
    child.terminate()
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
