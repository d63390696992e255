"""The checkpoint store of a stage that runs on several ranks: rank 0 writes and decides, all wait. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoints import CheckpointManager
from stages.world import World


@dataclass(frozen=True)
class SharedCheckpoints:
    """One store for all ranks, which call every method together."""

    store: CheckpointManager
    world: World

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Rank 0 lets `write` fill a folder and seals it; no rank goes on before. What to write is gathered before."""
        path = self.store.save(step, write) if self.world.main else None
        return Path(self.world.agreed(str(path)))

    def latest(self) -> tuple[int, Path] | None:
        """The newest complete checkpoint as rank 0 sees it, so that no host goes on from another one."""
        found = self.store.latest() if self.world.main else None
        told = self.world.agreed(found and (found[0], str(found[1])))
        return told and (told[0], Path(told[1]))

    def complete(self) -> list[tuple[int, Path]]:
        """All complete checkpoints as rank 0 sees them, newest first."""
        found = self.store.complete() if self.world.main else []
        return [(step, Path(path)) for step, path in self.world.agreed([(s, str(p)) for s, p in found])]
