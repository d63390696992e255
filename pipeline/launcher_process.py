"""The process of a launcher, started and ended with all that it starts on this host. Imports no torch."""

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from pipeline.launchers import Line
from pipeline.signals import signalled_after_parent

_PATIENCE = 5.0
"""Seconds to end by itself, then after SIGTERM."""


def start_launcher(line: Line, environment: Mapping[str, str]) -> subprocess.Popen:
    """Start a launcher that is asked to end when this process is gone.

    It has a session of its own: Ctrl-C at the terminal is for the ranks, which hear of it from this process.
    """
    return subprocess.Popen(
        line.arguments,
        env={**environment, **line.variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=partial(signalled_after_parent, signal.SIGTERM),
    )


def end_launcher(launcher: subprocess.Popen) -> None:
    """Let a launcher end whose ranks have ended, by stronger and stronger means, its children here included."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(subprocess.TimeoutExpired):
            launcher.wait(_PATIENCE)
            break
        _signal_all(launcher, number)
    launcher.wait()
    _signal_all(launcher, signal.SIGKILL)  # what one that was killed has left


def _signal_all(launcher: subprocess.Popen, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(launcher.pid, number)
