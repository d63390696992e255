"""Numbers of one PPO iteration for the log; docs/metrics.md defines each."""

from collections.abc import Callable
from time import perf_counter

import torch

from stages.ppo.experience import Experience
from stages.ppo.kl import k1, k3
from stages.ppo.losses import explained_variance

Metrics = dict[str, float]


def rollout_metrics(e: Experience, kl_coef: float) -> Metrics:
    """Metrics of the rollout; KL is the mean over completions of the sum over tokens, in nats."""
    kl = k1(e.logprobs, e.ref_logprobs, e.mask).sum(1)
    gap = torch.where(e.mask, (e.logprobs - e.sampled_logprobs).abs(), 0.0).sum() / e.mask.sum()
    lengths = e.mask.sum(1).float()
    return {
        "objective/score": float(e.scores.mean()),
        "objective/score_std": float(e.scores.std(correction=0)),
        "objective/kl": float(kl.mean()),
        "objective/kl_k3": float(k3(e.logprobs, e.ref_logprobs, e.mask).sum(1).mean()),
        "objective/kl_se": float(kl.std() / len(e) ** 0.5) if len(e) > 1 else 0.0,
        "objective/reward": float(e.rewards.sum(1).mean()),
        "objective/kl_coef": kl_coef,
        "policy/entropy": float(e.entropy.sum() / e.mask.sum()),
        "value/explained_variance": explained_variance(e.values, e.returns, e.mask),
        "rollout/length": float(lengths.mean()),
        "rollout/stopped_fraction": float(e.stopped.float().mean()),
        "rollout/empty_fraction": float(((lengths == 1) & e.stopped).float().mean()),
        "rollout/tokens": int(e.mask.sum()),
        "rollout/logprob_gap": float(gap),
    }


class Stopwatch:
    """Seconds of the phases of one iteration."""

    def __init__(self, enter: Callable[[str], None]):
        self._enter = enter
        self._start = perf_counter()
        self._phase, self._since = "", self._start
        self._laps: Metrics = {}

    def begin(self, phase: str) -> None:
        """Begin a phase, which ends the one before, and tell so."""
        self._end()
        self._phase = phase
        self._enter(phase)

    def metrics(self) -> Metrics:
        """End the last phase; the seconds of each and of all."""
        self._end()
        return self._laps | {"time/step": self._since - self._start}

    def _end(self) -> None:
        now = perf_counter()
        if self._phase:
            self._laps[f"time/{self._phase}"] = now - self._since
        self._since = now
