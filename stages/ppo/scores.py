"""What happens to a score between the reward and PPO: normalisation, clipping, the missing-EOS rule."""

import math

import torch
from torch import Tensor

from stages.ppo.config import MissingEOSConfig


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
        return math.sqrt(self.squares / self.count) if self.squares > 0 else 1.0

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]


class ScoreRule:
    """Scores [B] of the reward -> scores [B] that PPO maximises."""

    def __init__(self, missing_eos: MissingEOSConfig, clip: float | None, moments: RunningMoments | None):
        self.missing_eos = missing_eos
        self.clip = clip
        self.moments = moments

    def __call__(self, scores: Tensor, stopped: Tensor) -> Tensor:
        """`stopped` [B]: whether a stop token was sampled. A replaced score never enters the running moments."""
        if self.moments is not None:
            self.moments.update(scores[stopped] if self.missing_eos.mode == "replace" else scores)
            scores = scores / self.moments.std
        if self.clip is not None:
            scores = scores.clamp(-self.clip, self.clip)
        if self.missing_eos.mode == "replace":
            return torch.where(stopped, scores, self.missing_eos.value)
        if self.missing_eos.mode == "subtract":
            return torch.where(stopped, scores, scores - abs(self.missing_eos.value))
        return scores
