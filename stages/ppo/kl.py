"""KL estimators and the controllers of the KL coefficient. Axes: B batch, T completion tokens."""

from typing import Protocol

import torch
from torch import Tensor


def k1(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Signed log-ratio per token, `log pi - log ref` [B, T], 0 outside the mask.

    On samples from the policy its mean is KL(pi || ref), and as a *reward* it is the only one of the common
    estimators whose score-function gradient is that of the KL (http://joschu.net/blog/kl-approx.html).
    """
    return torch.where(mask, logprobs - ref_logprobs, 0.0)


def k3(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """`exp(-d) - 1 + d` per token with d = k1 [B, T]: same mean, never negative; for logging only."""
    d = k1(logprobs, ref_logprobs, mask)
    return torch.expm1(-d) + d


class KLController(Protocol):
    """Owner of the coefficient beta of the KL penalty."""

    coef: float

    def update(self, kl: float, episodes: int) -> None:
        """Take the rollout's mean KL (nats per completion) over `episodes` completions of all devices."""

    def raise_by(self, factor: float) -> None:
        """Multiply the coefficient from now on."""

    def state_dict(self) -> dict[str, float]: ...

    def load_state_dict(self, state: dict[str, float]) -> None: ...


class FixedKL:
    """beta stays what it is, unless it is raised."""

    def __init__(self, coef: float):
        self.coef = self._configured = coef
        self._raised = 1.0

    def update(self, kl: float, episodes: int) -> None:
        return None

    def raise_by(self, factor: float) -> None:
        self._raised *= factor
        self.coef = self._configured * self._raised

    def state_dict(self) -> dict[str, float]:
        return {"raised": self._raised}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """The coefficient is the config's, as far as it was raised."""
        self._raised = state.get("raised", 1.0)
        self.coef = self._configured * self._raised


class AdaptiveKL(FixedKL):
    """Proportional control in log space, arXiv 1909.08593 section 2.2 and the code released with it.

    `error = clip(kl / target - 1, -0.2, 0.2)`;  `beta <- beta (1 + error * episodes / horizon)`.
    """

    def __init__(self, coef: float, target: float, horizon: int):
        super().__init__(coef)
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, episodes: int) -> None:
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.coef *= 1.0 + error * episodes / self.horizon

    def raise_by(self, factor: float) -> None:
        self.coef *= factor

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coef = state["coef"]
