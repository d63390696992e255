"""The command of one stage and its run as a child process. Imports no torch."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

from pipeline.redacted_output import redacted
from pipeline.signals import Relay
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


def run_logged(command: Sequence[str], log: Path, append: bool, relay: Relay, stage: bool = True) -> int:
    """Run a child, its output going to the terminal at once and line by line to `log`; its exit code.

    Polite signals reach it through `relay`, and it is waited for however long it takes to end. A `stage` listens to
    them itself, so those that come while Python starts wait for it.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("ab" if append else "wb") as file:
        child = relay.start(command, environment, waits=stage)
        try:
            _copy(child.stdout, file, sys.stdout)
        except BaseException:
            child.terminate()
            _copy(child.stdout, file, None)  # or it would wait for its output to be read
            relay.wait()
            raise
        return relay.wait()


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines of a log."""
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]


def _copy(source: BinaryIO, log: BinaryIO, terminal: TextIO | None) -> None:
    """Pass text on, without secrets; the log gets whole lines, a progress bar's only in its last state."""
    pending = ""
    for text in redacted(source, redactor()):
        if terminal:
            terminal.write(text)
            terminal.flush()
        *lines, pending = (pending + text).split("\n")
        log.writelines(_settled(line) for line in lines)
        log.flush()
    if pending:
        log.write(_settled(pending))


def _settled(line: str) -> bytes:
    return line.rstrip("\r").rpartition("\r")[2].encode("utf-8", errors="replace") + b"\n"
