"""From one score per completion to advantages and returns per token. Axes: B batch, T completion tokens.

The completion mask is True up to and including the stop token: stopping is an action like any other.
"""

import torch
from torch import Tensor


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Rewards [B, T]: `-kl_coef * kl_t` on every token, plus the score [B] on the last one.

    The last token is the stop token, or column T - 1 of a completion that was cut off (arXiv 1909.08593, eq. 2).
    """
    rewards = torch.where(mask, -kl_coef * kl, 0.0)
    last = mask.sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores.to(rewards.dtype).unsqueeze(1))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16): advantages and returns, both [B, T].

    `delta_t = r_t + gamma V_{t+1} - V_t`;  `A_t = delta_t + gamma lam A_{t+1}`;  `G_t = A_t + V_t`.
    Nothing follows the last token: V and A are 0 after it, whether it stopped or was cut off.
    """
    values = torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(mask[:, t], delta + gamma * lam * next_advantage, 0.0)
        advantages[:, t], next_value = next_advantage, values[:, t]
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale to mean 0, variance 1 (ddof 0) over masked tokens; 0 elsewhere.

    Statistics are taken in float64 over the whole rollout, so no split into minibatches can change them.
    """
    chosen = x[mask].double()
    mean = chosen.mean()
    variance = (chosen - mean).square().mean()
    return torch.where(mask, (x - mean) / torch.sqrt(variance + 1e-8), 0.0).to(x.dtype)
