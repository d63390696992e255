"""What a stage is at, told while it works, so that one that no longer works can be noticed. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Pulse:
    """Written by a stage, read by a watchdog: every change of `beats` is progress.

    Every forward pass of a model beats (`Roles.on_forward`), and so does each new phase.
    """

    phase: str = "loading"
    step: int = 0
    """The step that is being made; 0 before the first."""
    beats: int = 0
    on_phase: Callable[[], None] = lambda: None
    """Called when a phase has begun."""

    def beat(self) -> None:
        """Tell progress within a phase."""
        self.beats += 1

    def enter(self, phase: str, step: int | None = None) -> None:
        """Tell that a phase begins; without `step` in the same step."""
        self.phase = phase
        self.step = self.step if step is None else step
        self.beat()
        self.on_phase()
