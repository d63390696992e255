"""Checks that end a run whose numbers can no longer mean anything."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stages.base import Diverged
from stages.divergence import NonFinite

CAUSES = (
    "the sampling temperature is not in the scored log-probabilities",
    "dropout is on",
    "position ids do not follow the padding",
    "the reference is not the model that PPO starts from",
    "the completion mask is shifted",
    "a new adapter of this PEFT type changes the model before it is trained",
)


def require_finite(
    tensors: Mapping[str, Tensor], known: Mapping[str, Tensor], step: int, episodes: Sequence[int]
) -> None:
    """Raise NonFinite, naming step, tensor and episodes, when one of `tensors` has a NaN or an infinity.

    A tensor with one row per episode names the episodes of its bad rows, any other all of them. `known` is what else
    there is of the batch.
    """
    everyone = list(episodes)
    for name, tensor in tensors.items():
        bad = ~torch.isfinite(tensor)
        if not bad.any():
            continue
        if tensor.shape[:1] == (len(episodes),):
            episodes = [e for e, row in zip(episodes, bad.reshape(len(episodes), -1).any(1), strict=True) if row]
        raise NonFinite(
            f"[PPO03] ppo step {step}: {name} is not finite for episodes {sorted(episodes)[:8]}",
            "lower ppo.learning_rate, or see docs/metrics.md",
            name,
            {**known, **tensors, "episodes": torch.tensor(everyone)},
        )


def require_clean_start(kl: float, ratio_error: float, compute: str) -> None:
    """Raise Diverged unless the first iteration started at KL 0 (nats per completion) and ratio 1."""
    kl_limit, ratio_limit = (1e-3, 1e-3) if compute == "float32" else (2e-2, 0.5)
    if abs(kl) > kl_limit or ratio_error > ratio_limit:
        raise Diverged(
            f"[PPO02] before the first update KL is {kl:.4g} nats (limit {kl_limit}) and a ratio is off by "
            f"{ratio_error:.4g} (limit {ratio_limit}); possible causes: {'; '.join(CAUSES)}"
        )


def require_answers(empty: float, limit: float, count: int, step: int) -> None:
    """Raise Diverged when the fraction of empty completions of a rollout is above the limit."""
    if empty > limit:
        raise Diverged(
            f"[PPO01] step {step}: {round(empty * count)} of {count} completions are empty ({empty:.0%}), more than "
            f"ppo.max_empty_fraction {limit:g}; fix: raise ppo.kl_coef or lower ppo.learning_rate, and look at what "
            "the reward says of an empty text"
        )
