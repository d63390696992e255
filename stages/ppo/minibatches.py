"""How a rollout is cut into minibatches."""

import numpy as np
import torch
from torch import Tensor


def minibatches(seed: int, epoch: int, count: int, size: int) -> list[Tensor]:
    """Row numbers [size] of each minibatch of one pass over `count` rows; a function of (seed, epoch of the stage).

    Each takes one row of every `count / size` neighbours, so that ranks, which hold neighbouring rows of a rollout,
    have equal shares in all of them.
    """
    neighbours = np.arange(count).reshape(size, -1)
    order = np.random.Generator(np.random.Philox(key=[seed, 2**33 + epoch])).permuted(neighbours, axis=1)
    return list(torch.from_numpy(order.T.copy()))
