"""What happens to a score between the reward and PPO: normalisation, clipping, the missing-EOS rule."""

import torch
from torch import Tensor

from reward.scales import RunningMoments
from stages.ppo.config import MissingEOSConfig


class ScoreRule:
    """Scores [B] of the reward -> scores [B] that PPO maximises."""

    def __init__(self, missing_eos: MissingEOSConfig, clip: float | None, moments: RunningMoments | None):
        self.missing_eos = missing_eos
        self.clip = clip
        self.moments = moments

    def __call__(self, scores: Tensor, stopped: Tensor) -> Tensor:
        """`stopped` [B]: whether a stop token was sampled. A replaced score never enters the running moments."""
        if self.moments is not None:
            self.moments.update(scores[self.counted(stopped)])
            scores = scores / self.moments.std
        if self.clip is not None:
            scores = scores.clamp(-self.clip, self.clip)
        if self.missing_eos.mode == "replace":
            return torch.where(stopped, scores, self.missing_eos.value)
        if self.missing_eos.mode == "subtract":
            return torch.where(stopped, scores, scores - abs(self.missing_eos.value))
        return scores

    def counted(self, stopped: Tensor) -> Tensor:
        """bool [B]: whose scores count, so that running moments may learn from them; a replaced one does not."""
        return stopped if self.missing_eos.mode == "replace" else torch.ones_like(stopped)
