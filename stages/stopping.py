"""A polite request to stop, and how a stage follows it. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass


class Interrupted(Exception):
    """The stage ended as asked, with nothing lost: the state after `step` is on disk, or there was none yet."""

    def __init__(self, step: int):
        super().__init__(f"stopped after step {step}")
        self.step = step


@dataclass
class StopRequest:
    """Set by whoever listens for signals; read by a stage where it can end without losing work."""

    signal: int | None = None
    """Number of the first signal that asked, None while nobody has."""
    everywhere: Callable[[int], int] = lambda heard: heard
    """From the number heard here, 0 for none, to one that any rank has heard; waits for all ranks."""

    @property
    def asked(self) -> bool:
        """Whether the stage is to end at its next boundary. All ranks ask together."""
        self.signal = self.everywhere(self.signal or 0) or None
        return self.signal is not None

    def follow(self, step: int) -> None:
        """Raise Interrupted if asked to; to be called where the state after `step` is saved, or is the start."""
        if self.asked:
            raise Interrupted(step)
