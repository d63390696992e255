"""The ranks of one stage: which of them this process is, and what they tell each other. Imports torch when it joins.

Rows of a batch are dealt in blocks of neighbours: of B rows, rank r holds r B / size up to (r + 1) B / size.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_VARIABLES = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
_WEEK = 7 * 24 * 3600.0


@dataclass(frozen=True)
class World:
    """This process among those that run one stage together. Alone, every collective returns what it was given."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Number among the processes of this host; chooses the device."""
    timeout_s: float = _WEEK
    """A collective that waits longer than this for another rank fails."""

    @classmethod
    def from_environment(cls, timeout_s: float | None = None, environment: Mapping[str, str] = os.environ) -> "World":
        """What torchrun, DeepSpeed's launchers and `rlhf run` say in RANK, WORLD_SIZE and LOCAL_RANK."""
        numbers = (int(environment.get(name, alone)) for name, alone in _VARIABLES.items())
        return cls(*numbers, timeout_s or _WEEK)

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def join(self) -> None:
        """Connect the ranks."""
        if self.alone:
            return
        import torch
        from torch import distributed

        from stages.deepspeed_start import join_ranks

        if torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank)
        join_ranks(self.timeout_s)
        assert distributed.get_world_size() == self.size

    def share(self, rows: int) -> slice:
        """The rows of a batch that are this rank's. `rows` must be a multiple of the number of ranks."""
        each, rest = divmod(rows, self.size)
        assert rest == 0, f"{rows} rows over {self.size} ranks"
        return slice(self.rank * each, (self.rank + 1) * each)

    def gather(self, own: "Tensor") -> "Tensor":
        """Tensors [b, ...] of all ranks, of equal shapes, as one [size b, ...] in rank order."""
        if self.alone:
            return own
        import torch
        from torch import distributed

        sent = own.byte() if own.dtype == torch.bool else own.contiguous()  # Gloo has no booleans
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        distributed.all_gather(parts, sent)
        return torch.cat(parts).to(own.dtype)

    def sum(self, own: "Tensor") -> "Tensor":
        """Sum over the ranks."""
        return self._reduced(own, "SUM")

    def max(self, own: "Tensor") -> "Tensor":
        """Elementwise largest over the ranks; a NaN counts as infinity."""
        return self._reduced(own.nan_to_num(nan=float("inf"), posinf=float("inf")), "MAX")

    def largest(self, own: int) -> int:
        """Largest of the ranks' numbers."""
        return max(self.gather_objects(own))

    def gather_objects(self, own: Any) -> list[Any]:
        """One object of each rank, in rank order."""
        if self.alone:
            return [own]
        from torch import distributed

        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, own)
        return found

    def agreed(self, said: Any) -> Any:
        """What rank 0 says, on every rank."""
        if self.alone:
            return said
        from torch import distributed

        message = [said]
        distributed.broadcast_object_list(message, src=0)
        return message[0]

    @contextmanager
    def together(self, kind: type[Exception]) -> Iterator[None]:
        """Inside, an error of this kind on one rank becomes an error on all of them, after which they can go on.

        That of the first rank which has one is raised everywhere, so that all do the same about it. It is made from
        its attributes, as a user's error is from code, problem and fix.
        """
        found = None
        try:
            yield
        except kind as error:
            found = error
        told = [
            (rank, *one) for rank, one in enumerate(self.gather_objects(found and (type(found), vars(found)))) if one
        ]
        if told:
            rank, raised, attributes = told[0]
            raise found if rank == self.rank else raised(**attributes)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if not self.alone:
            from torch import distributed

            distributed.barrier()

    def _reduced(self, own: "Tensor", operation: str) -> "Tensor":
        if self.alone:
            return own
        from torch import distributed

        result = own.clone()
        distributed.all_reduce(result, getattr(distributed.ReduceOp, operation))
        return result


ALONE = World()
