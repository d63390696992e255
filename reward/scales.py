"""What is done with a source's scores before they are weighted: shifted, divided, clipped. Axis: B completions."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

CONSTANT = 1e-6
"""Standard deviation, as a fraction of the mean, below which numbers are taken for one number and rounding."""


class RunningMoments:
    """Mean and variance of every number seen so far (Chan et al. 1979); part of a checkpoint."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def update(self, values: Tensor) -> None:
        if len(values) == 0:
            return
        values = values.double()
        total = self.count + len(values)
        shift = float(values.mean()) - self.mean
        self.squares += float((values - values.mean()).square().sum()) + shift**2 * self.count * len(values) / total
        self.mean += shift * len(values) / total
        self.count = total

    @property
    def std(self) -> float:
        """Standard deviation (ddof 0); 1 while nothing varies."""
        found = math.sqrt(self.squares / self.count) if self.squares > 0 else 0.0
        return found if found > CONSTANT * abs(self.mean) else 1.0

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]


@dataclass(frozen=True)
class Scale:
    """`(score - mean) / std`, clipped to +- clip."""

    mean: float = 0.0
    std: float = 1.0
    clip: float | None = None

    def __call__(self, scores: Tensor) -> Tensor:
        """Scores [B] of the source -> scores [B] that are weighted."""
        scores = (scores - self.mean) / self.std
        return scores if self.clip is None else scores.clamp(-self.clip, self.clip)


@dataclass(frozen=True)
class RunningScale:
    """A scale by the moments of what the source has said in training so far."""

    centred: bool
    """Whether the mean is taken off, or the scores divided only."""
    clip: float | None = None
    moments: RunningMoments = field(default_factory=RunningMoments)

    def __call__(self, scores: Tensor) -> Tensor:
        """Scores [B] of the source -> scores [B] that are weighted."""
        return Scale(self.moments.mean if self.centred else 0.0, self.moments.std, self.clip)(scores)

    def learn(self, scores: Tensor) -> None:
        """See scores [B] for the moments; NaN, where the term does not apply, is none."""
        self.moments.update(scores[~torch.isnan(scores)])
