"""The loss of a pair: Bradley-Terry (arXiv 2009.01325, eq. 1) with margin and centring. Pure."""

from torch import Tensor
from torch.nn import functional


def pair_losses(chosen: Tensor, rejected: Tensor, margin: Tensor | float, centering: float) -> Tensor:
    """-log sigmoid(chosen - rejected - margin) + centering (chosen + rejected)^2 (arXiv 2312.09244, eq. 2), [B]."""
    losses = -functional.logsigmoid(chosen - rejected - margin)
    return losses + centering * (chosen + rejected) ** 2 if centering else losses
