"""SIGTERM and SIGINT: a stage saves its state and ends, the chain waits for it. Imports no torch.

SIGKILL of `rlhf run` is SIGKILL of its stage too: an orphan that went on for a step would write into the folder that
the next `rlhf run` has already opened. The steps since the last checkpoint are lost, as with any SIGKILL.
"""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Protocol

from stages.stopping import StopRequest

POLITE = (signal.SIGTERM, signal.SIGINT)
_PARENT = "RLHF_PARENT"
_PR_SET_PDEATHSIG = 1
_ECHO_SECONDS = 1.0
"""Ctrl-C reaches the stage from the terminal and from `rlhf run`: two signals so close together are one request."""


def end_with_parent() -> None:
    """Make the system kill this process when the `rlhf run` that started it is gone; does nothing without one."""
    parent = os.environ.pop(_PARENT, None)
    if parent is not None:
        die_with(int(parent))


def die_with(parent: int) -> None:
    """Make the system kill this process when its parent is gone."""
    signalled_after_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def signalled_after_parent(number: int) -> None:
    """Make the system send this process a signal when its parent is gone."""
    with suppress(AttributeError, OSError):  # Linux only
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


@contextmanager
def listening(stop: StopRequest) -> Iterator[None]:
    """Inside, polite signals ask to stop instead of ending this process, those included that waited until now."""
    first = 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if stop.signal is None:
            stop.signal, first = number, time.monotonic()
            _say(f"{signal.Signals(number).name}: stopping after this step")
        elif time.monotonic() - first > _ECHO_SECONDS:
            _say("already stopping after this step; SIGKILL ends it at once and costs the steps since the checkpoint")

    with _handling(ask, lambda: stop.signal is not None):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, POLITE)
        yield


class Child(Protocol):
    """What a relay needs of the process, or the processes, below it."""

    def send_signal(self, number: int) -> None: ...

    def wait(self) -> int: ...


class Relay:
    """Polite signals to `rlhf run`: passed on to its running child; between children they end the chain at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._child: Child | None = None

    @contextmanager
    def installed(self) -> Iterator["Relay"]:
        """Inside, this relay handles the polite signals."""
        with _handling(self._handle, lambda: self.received is not None):
            yield self

    def start(self, command: Sequence[str], environment: Mapping[str, str], waits: bool) -> subprocess.Popen:
        """Start a child that ends with this process. With `waits`, signals wait until the child calls `listen`."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, POLITE)
        try:
            child = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**environment, _PARENT: str(os.getpid())},
                preexec_fn=None if waits else _unblock,
            )
            self._child = child
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return child

    def adopt(self, child: "Child") -> None:
        """Pass signals on to a child that was not started here, until `wait`."""
        self._child = child

    def wait(self) -> int:
        """Wait for the child, however long it takes; its exit code, 128 + n after signal n."""
        code = self._child.wait()
        self._child = None
        return code if code >= 0 else 128 - code

    @property
    def code(self) -> int:
        """Exit code of a chain that was asked to stop; 0 when it was not."""
        return 128 + self.received if self.received else 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        if self._child is None:
            raise SystemExit(self.code)
        self._child.send_signal(number)


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None], ending: Callable[[], bool]) -> Iterator[None]:
    """Handle the polite signals, except those that nohup or a shell's `&` silenced.

    When it is `ending`, the process has its exit code and only has to go: from here on it ignores them. The
    interpreter gives signals with a handler back to the system while it ends, and a second Ctrl-C would kill it then.
    """
    heard = [number for number in POLITE if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, signal.SIG_IGN if ending() else earlier)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, POLITE)


def _say(line: str) -> None:
    """Past Python's buffers: the signal may have come in the middle of a print."""
    with suppress(OSError):
        os.write(1, f"{line}\n".encode())
