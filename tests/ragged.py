"""Random batches of completions of unequal lengths. Axes: B batch, T completion tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

GARBAGE = (float("nan"), float("inf"), float("-inf"), 1e30, -1e30)
"""What padding may hold without anybody noticing."""


def mask_of(lengths: Sequence[int], width: int) -> Tensor:
    """True on the first lengths[i] columns of row i, bool [B, width]."""
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, a function of shape, seed and dtype alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spoil(x: Tensor, mask: Tensor, garbage: float) -> Tensor:
    """`x` with `garbage` outside the mask."""
    return torch.where(mask, x, garbage)
