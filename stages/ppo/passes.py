"""Forward passes over a rollout in microbatches. Axes: B batch, T completion tokens, S all tokens."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.models.trunk import NoTrunk
from stages.rollout import Rollout

AnyRollout = TypeVar("AnyRollout", bound=Rollout)


@dataclass(frozen=True)
class Passes:
    """Microbatches of rows of similar length, each cut to its own columns: padding is not computed."""

    trunk: NoTrunk
    size: int

    def record(self, rollout: Rollout, forward: Callable[[Rollout], Tensor]) -> Tensor:
        """`forward` over all rows of a new rollout; what leaves the frozen trunk is kept for it."""
        self.trunk.begin(*rollout.ids.shape)
        return self._over(rollout, forward, self.trunk.recording)

    def replay(self, rollout: Rollout, forward: Callable[[Rollout], Tensor]) -> Tensor:
        """`forward` over all rows, starting from what was recorded. [b] or [b, ..., t] becomes [B] or [B, ..., T]."""
        return self._over(rollout, forward, self.trunk.replaying)

    def _over(
        self, rollout: Rollout, forward: Callable[[Rollout], Tensor], on_trunk: Callable[..., AbstractContextManager]
    ) -> Tensor:
        result = None
        for rows, columns, part in self.microbatches(rollout, torch.arange(len(rollout))):
            with on_trunk(rows, columns):
                value = forward(part)
            if value.dim() > 1:
                value = functional.pad(value, (0, rollout.mask.shape[1] - value.shape[-1]))
            result = value.new_zeros(len(rollout), *value.shape[1:]) if result is None else result
            result[rows] = value
        return result

    def microbatches(self, rollout: AnyRollout, rows: Tensor) -> Iterator[tuple[Tensor, slice, AnyRollout]]:
        """The given rows, shortest first: their numbers, the columns that are left, and the rows cut to them."""
        lengths = rollout.lengths.cpu()[rows]
        for part in rows[lengths.argsort(stable=True)].split(self.size):
            cut, columns = rollout[part].trimmed()
            yield part, columns, cut


@contextmanager
def recomputing(modules: Sequence[nn.Module], on: bool) -> Iterator[None]:
    """Inside, activations are recomputed if `on`: transformers does it in train mode alone.

    Nothing else depends on the mode, for every dropout probability is 0.
    """
    for module in modules:
        module.train(on)
    try:
        yield
    finally:
        for module in modules:
            module.eval()
