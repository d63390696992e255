"""Statistics of PPO's optimizer steps: shares of microbatches and ranks, added up."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stages.ppo.metrics import Metrics
from stages.world import World


def add(stats: dict[str, Tensor], per_token: dict[str, Tensor], tokens: Tensor) -> None:
    """Add a microbatch's share of means over the `tokens` of a minibatch."""
    for name, value in per_token.items():
        stats[name] = stats.get(name, value.new_zeros(())) + value.detach().sum() / tokens


def add_ratio_error(stats: dict[str, Tensor], log_ratio: Tensor) -> None:
    """Keep the largest distance of a ratio pi / pi_old from 1."""
    furthest = log_ratio.detach().expm1().abs().max()
    stats["ratio_error"] = torch.maximum(stats.get("ratio_error", torch.zeros_like(furthest)), furthest)


def over_ranks(stats: dict[str, Tensor], world: World) -> Metrics:
    """Sums of the ranks' shares, and the largest ratio error."""
    worst = world.max(stats.pop("ratio_error"))
    sums = world.sum(torch.stack(list(stats.values())))
    return {**dict(zip(stats, sums.tolist(), strict=True)), "ratio_error": float(worst)}


def summary(totals: Sequence[Metrics]) -> Metrics:
    """Means over the optimizer steps, and the ratio error of the first, which must be 0."""
    names = {name for stats in totals for name in stats} - {"ratio_error"}
    means = {name: float(np.mean([s[name] for s in totals if name in s])) for name in sorted(names)}
    return means | {
        "policy/ratio_first": totals[0]["ratio_error"],
        "policy/updates": sum("value/learning_rate" in s for s in totals),
    }
