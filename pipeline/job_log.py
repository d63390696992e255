"""Where the output of many ranks goes. Imports no torch."""

import sys
import time
from collections import deque
from typing import BinaryIO

from pipeline.launch import TRACEBACK, ending, settled

_KEPT, _TOLD = 300, 29
"""Lines of each rank that are kept for the case that it fails first, and how many end the log without a traceback."""
_HELD = 15.0
"""Seconds for which rank 0's traceback is held back from the terminal: it may follow from another rank's failure."""


class JobLog:
    """Rank 0's output to terminal and log as if it were alone; that of others to the log, with their name in front."""

    def __init__(self, log: BinaryIO):
        self._log = log
        self._pending: dict[str, str] = {}
        self._last: dict[str, deque[str]] = {}
        self._held = ""
        self._held_until = 0.0

    def write(self, source: str, text: str, shown: bool) -> None:
        """Take output as it comes; whole lines go to the log at once."""
        if shown:
            self._show(text)
        *lines, self._pending[source] = (self._pending.get(source, "") + text).split("\n")
        for line in lines:
            self._line(source, line, shown)
        self._log.flush()

    def release(self) -> None:
        """Show what has been held back for long enough."""
        if self._held and time.monotonic() > self._held_until:
            held, self._held = self._held, ""
            _print(held)

    def forget(self) -> None:
        """Show nothing of what is held back: the log has it, and its end will have the cause."""
        self._held, self._held_until = "", float("inf")

    def tell(self, text: str) -> None:
        """A line of our own to terminal and log."""
        print(text, flush=True)
        self._log.write(f"{text}\n".encode())
        self._log.flush()

    def conclude(self, source: str, told: str) -> None:
        """Let the log end with what one source said last, and why it matters."""
        for name in [name for name, text in self._pending.items() if text]:
            self.write(name, "\n", shown=False)
        for line in (*ending(list(self._last.get(source, ())), _TOLD), told):
            self._log.write(f"{line}\n".encode(errors="replace"))
        self._log.flush()

    def _show(self, text: str) -> None:
        if self._held_until == float("inf"):
            return
        if not self._held and TRACEBACK in text:
            before, mark, text = text.partition(TRACEBACK)
            _print(before)
            self._held, self._held_until = mark, time.monotonic() + _HELD
        if self._held:
            self._held += text
        else:
            _print(text)

    def _line(self, source: str, line: str, shown: bool) -> None:
        content = settled(line)
        self._last.setdefault(source, deque(maxlen=_KEPT)).append(content.decode(errors="replace").rstrip("\n"))
        self._log.write(content if shown else f"[{source}] ".encode() + content)


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
