"""Every global generator is a function of (seed, index)."""

import random

import numpy as np
import torch

from stages.generators import seed_generators


def draws(seed: int, index: int) -> tuple[float, float, float]:
    seed_generators(seed, index)
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_the_same_pair_gives_the_same_numbers_whatever_was_drawn_before():
    assert draws(3, 5) == draws(3, 5)
    assert len({number for pair in ((3, 5), (5, 3), (3, 6), (4, 5)) for number in draws(*pair)}) == 12
