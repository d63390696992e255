"""The global random generators as a function of (seed, index), so that a resumed run has nothing to restore."""

import random

import numpy as np
import torch


def seed_generators(seed: int, index: int) -> None:
    """Seed Python's, NumPy's and torch's generators for one unit of work, such as a PPO iteration.

    Our own draws do not use them; a reward function may.
    """
    words = [int(word) for word in np.random.SeedSequence([seed, index]).generate_state(4)]
    random.seed(words[0])
    np.random.seed(words[1])
    torch.manual_seed(words[2] << 32 | words[3])
