"""PPO's losses per token, to be summed and divided by the tokens of the optimizer step. Axes: B batch, T tokens.

Masked slots may hold anything, NaN included: `log_ratio` selects with the mask before anything is computed, and so do
the functions that take other tensors; where they take a log-ratio, it has to come from `log_ratio`.
"""

import torch
from torch import Tensor


def log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """`log pi - log pi_old` [B, T], 0 outside the mask, clamped to +-20 so that its exponential stays finite."""
    return torch.where(mask, logprobs - old_logprobs, 0.0).clamp(-20.0, 20.0)


def policy_loss(
    log_ratio: Tensor, advantages: Tensor, mask: Tensor, clip_range: float, dual_clip: float | None = None
) -> Tensor:
    """Clipped surrogate [B, T] (arXiv 1707.06347, eq. 7): `max(-A rho, -A clip(rho, 1 - eps, 1 + eps))`.

    With `dual_clip` c > 1, tokens of negative advantage cost at most `-c A` (arXiv 1912.09729, eq. 5).
    """
    advantages = torch.where(mask, advantages, 0.0)
    ratio = log_ratio.exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range))
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    return torch.where(mask, loss, 0.0)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float | None) -> Tensor:
    """`0.5 max((V - G)^2, (V_clip - G)^2)` [B, T], `V_clip = V_old + clip(V - V_old, +-clip_range)`; None = plain."""
    values, old_values, returns = (torch.where(mask, x, 0.0) for x in (values, old_values, returns))
    error = (values - returns).square()
    if clip_range is not None:
        clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
        error = torch.maximum(error, (clipped - returns).square())
    return 0.5 * error


def approx_kl(log_ratio: Tensor) -> Tensor:
    """KL(pi_old || pi) per token by `rho - 1 - log rho` [B, T]; 0 outside the mask because log rho is."""
    return torch.expm1(log_ratio) - log_ratio


def clipped(log_ratio: Tensor, clip_range: float) -> Tensor:
    """Which tokens' ratio lies outside 1 +- clip_range, as 0.0 / 1.0 [B, T]."""
    return ((log_ratio.exp() - 1).abs() > clip_range).float()


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """`1 - Var(G - V) / Var(G)` over masked tokens; 0 when the returns do not vary."""
    returns, values = returns[mask].double(), values[mask].double()
    variance = returns.var(correction=0)
    if variance == 0:
        return 0.0
    return float(1 - (returns - values).var(correction=0) / variance)
