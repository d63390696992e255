"""What every stage is given and what it returns. Imports no torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from stages.pulse import Pulse
from stages.stopping import StopRequest
from stages.world import ALONE, World


class Tracker(Protocol):
    """Sink of metrics and samples; pipeline.tracking implements it."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None: ...


class Checkpoints(Protocol):
    """Store of resumable states; pipeline.checkpoints implements it."""

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Let `write` fill a folder, then seal it as the checkpoint of `step`."""

    def latest(self) -> tuple[int, Path] | None:
        """Newest complete checkpoint as (step, folder), or None."""

    def complete(self) -> Sequence[tuple[int, Path]]:
        """All complete checkpoints as (step, folder), newest first."""


@dataclass(frozen=True)
class StageContext:
    """Where a stage runs: its folder and its services."""

    folder: Path
    """`runs/<name>/<stage>`; the stage writes its model to `folder / "final"`."""
    tracker: Tracker
    checkpoints: Checkpoints
    seed: int
    stop: StopRequest = field(default_factory=StopRequest)
    """Whether the stage is to save its state and end."""
    pulse: Pulse = field(default_factory=Pulse)
    """What the stage is at; it tells here that it makes progress."""
    world: World = ALONE
    """The ranks that run the stage; all call the tracker and the checkpoints, rank 0 writes."""


@dataclass(frozen=True)
class StageResult:
    """What a finished stage reports; becomes part of its stage.json."""

    final: Path
    adapter: bool
    """Whether `final` holds an adapter (True) or whole weights."""
    headline: Mapping[str, float]
    """A few metrics for tables; names as in docs/metrics.md."""
    details: Mapping[str, Any] = field(default_factory=dict)


class InputError(Exception):
    """A mistake of the user: coded, located, with its fix. Shown without a traceback, exit code 2.

    >>> str(InputError("DATA01", "row 1: no field 'rejected'", fix="rename the column"))
    "[DATA01] row 1: no field 'rejected'; fix: rename the column"
    """

    def __init__(self, code: str, problem: str, fix: str):
        super().__init__(f"[{code}] {problem}; fix: {fix}")
        self.code, self.problem, self.fix = code, problem, fix

    def at(self, place: str) -> "InputError":
        """The same mistake with its place in front."""
        return InputError(self.code, f"{place}: {self.problem}", self.fix)


class Diverged(Exception):
    """Training produced a non-finite value, or a rule of its health ended it; exit code 4."""
