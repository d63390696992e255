"""How DeepSpeed splits the training state. Imports no torch."""

from typing import Literal

from pydantic import model_validator

from reward.settings import Settings


class DeepSpeedConfig(Settings):
    """Section `deepspeed:`; without it one rank trains with plain torch, and several with ZeRO stage 0."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """0: every rank holds everything; 1: optimizer state is split; 2: gradients too; 3: weights too."""
    offload_optimizer: bool = False
    """Keep optimizer state in CPU memory (stages 1 to 3)."""
    offload_parameters: bool = False
    """Keep weights in CPU memory until a layer needs them (stage 3)."""
    gather_for_rollouts: bool = True
    """Stage 3: hold whole weights of the policy on every rank during a rollout; false gathers them layer by layer."""
    file: str | None = None
    """JSON in DeepSpeed's own words instead of the keys above; what the stages decide may not be in it."""

    @model_validator(mode="after")
    def _one_source(self) -> "DeepSpeedConfig":
        beside = sorted(self.model_fields_set - {"file", "gather_for_rollouts"})
        if self.file is not None and beside:
            raise ValueError(f"file is given beside {', '.join(beside)}; give the one or the other")
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3")
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError("offload_parameters needs zero_stage 3")
        return self
