"""The ranks of one stage process: who leads, who follows, and how a rank that fails is told. Imports no torch."""

import os
import sys
from dataclasses import dataclass

from pipeline.checkpoints import CheckpointManager
from pipeline.shared_checkpoints import SharedCheckpoints
from stages.base import Checkpoints, InputError
from stages.stopping import StopRequest
from stages.world import World

EXPECTED = "RLHF_RANKS"
"""Environment variable with the number of ranks that were started."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Timed out waiting")
_AFTER_WATCHDOG = 10.0
"""Seconds that the watchdog is given before a collective call that waits fails by itself."""


class OtherRankEnded(Exception):
    """A collective call failed because another rank is gone; that rank has told why."""


@dataclass(frozen=True)
class Ranks:
    """What the process of a stage does differently when it is one of several."""

    world: World

    @classmethod
    def from_environment(cls, timeout_s: float | None) -> "Ranks":
        """The ranks as the launcher says; they wait a little more than `timeout_s` for one another, None = always.

        The watchdog, whose limit `timeout_s` is, speaks first: it knows where the stage stands.

        Raises:
            InputError: LAUNCH01 fewer or more processes came than were started.
        """
        world = World.from_environment(timeout_s and timeout_s + _AFTER_WATCHDOG)
        expected = int(os.environ.get(EXPECTED, world.size))
        if expected != world.size:
            raise InputError(
                "LAUNCH01",
                f"{expected} ranks were started, but the launcher's world has {world.size}",
                fix="the launcher's output says which host did not come; look at its slots in the hostfile",
            )
        return cls(world)

    def join(self, stop: StopRequest) -> None:
        """Connect the ranks; from here on a polite signal to one of them stops all, in the same step."""
        if not self.world.alone:
            self.world.join()
            stop.everywhere = self.world.largest

    def quieten(self) -> None:
        """Leave standard output to rank 0; errors are told by the rank that has them."""
        if not self.world.main:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for the rest of the process

    def store(self, checkpoints: CheckpointManager) -> Checkpoints:
        """The checkpoints as the stage of this rank uses them."""
        return checkpoints if self.world.alone else SharedCheckpoints(checkpoints, self.world)

    def cause(self, error: Exception) -> Exception:
        """`error`, or that another rank is gone where that is all it says."""
        if self.world.alone or not any(sign in str(error) for sign in _LOST):
            return error
        return OtherRankEnded(f"rank {self.world.rank}: another rank has ended")
