"""The command of one stage and its run as a child process. Imports no torch."""

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import BinaryIO, TextIO

from pipeline.problems import EXIT_HANG
from pipeline.redacted_output import redacted
from pipeline.signals import Relay
from pipeline.watchdog import Watch, end_with_stacks
from stages.redaction import redactor

TRACEBACK = "Traceback (most recent call last)"
"""How Python begins to tell where an error was raised."""


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


def run_logged(command: Sequence[str], log: Path, append: bool, relay: Relay, watch: Watch | None = None) -> int:
    """Run a child, its output going to the terminal at once and line by line to `log`; its exit code.

    Polite signals reach it through `relay`, and it is waited for however long it takes to end. With `watch` it is a
    stage: it is ended when it makes no progress, and signals that come while its Python starts wait for it.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("ab" if append else "wb") as file:
        child = relay.start(command, environment, waits=watch is not None)
        try:
            with watch.over(partial(end_with_stacks, child)) if watch else nullcontext([]) as hung:
                _copy(child.stdout, file, sys.stdout)
                code = relay.wait()
        except BaseException:
            child.terminate()
            _copy(child.stdout, file, None)  # or it would wait for its output to be read
            relay.wait()
            raise
        for told in hung:
            print(told, file=sys.stderr, flush=True)
            file.write(f"{told}\n".encode())
    return EXIT_HANG if hung else code


def last_lines(log: Path, count: int) -> Sequence[str]:
    """The end of a log, as `ending` has it."""
    return ending(log.read_text(encoding="utf-8", errors="replace").splitlines(), count)


def ending(lines: Sequence[str], count: int) -> Sequence[str]:
    """The last `count` lines, and the beginning of a traceback that they would cut.

    >>> ending(["ready", TRACEBACK + ":", "  File a", "    b()", "E: no"], 2)
    ['Traceback (most recent call last):', '  File a', '    b()', 'E: no']
    """
    first = head = max(0, len(lines) - count)
    while head and lines[head].startswith("  "):
        head -= 1
    cut = any(line.startswith(TRACEBACK) for line in lines[head : head + 1])
    return lines[head if cut else first :]


def _copy(source: BinaryIO, log: BinaryIO, terminal: TextIO | None) -> None:
    """Pass text on, without secrets; the log gets whole lines, a progress bar's only in its last state."""
    pending = ""
    for text in redacted(source, redactor()):
        if terminal:
            terminal.write(text)
            terminal.flush()
        *lines, pending = (pending + text).split("\n")
        log.writelines(settled(line) for line in lines)
        log.flush()
    if pending:
        log.write(settled(pending))


def settled(line: str) -> bytes:
    """A line as a log keeps it: a progress bar's only in its last state."""
    return line.rstrip("\r").rpartition("\r")[2].encode("utf-8", errors="replace") + b"\n"
