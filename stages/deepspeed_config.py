"""How DeepSpeed splits the training state. Imports no torch."""

from typing import Literal

from reward.settings import Settings


class DeepSpeedConfig(Settings):
    """Section `deepspeed:`; without it one rank trains with plain torch, and several with ZeRO stage 0."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """0: every rank holds everything; 1: optimizer state is split; 2: gradients too; 3: weights too."""
    offload_optimizer: bool = False
    """Keep optimizer state in CPU memory (stages 1 to 3)."""
    offload_parameters: bool = False
    """Keep weights in CPU memory until a layer needs them (stage 3)."""
