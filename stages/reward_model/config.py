"""Knobs of reward-model training."""

from typing import Literal

from pydantic import Field, model_validator

from stages.models.config import TuningConfig
from stages.trainer_config import TrainerConfig


class RewardModelConfig(TrainerConfig):
    path: str | None = None
    """Base of the reward model (hub id, folder, GGUF file); null = the SFT model."""
    tuning: TuningConfig = TuningConfig()
    """Which parameters are trained; the scalar head always is."""
    members: int = Field(default=1, ge=1, le=100)
    """Reward models that are trained one after another, each with another seed; a reward term combines their scores."""
    learning_rate: float = Field(default=9e-6, gt=0)
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate after warm-up."""
    batch_size: int = Field(default=64, gt=0)
    """Pairs per optimizer step, over all devices."""
    max_length: int = Field(default=1024, gt=1)
    """Tokens of prompt and completion together; longer pairs are dropped and counted."""
    centering_coef: float = Field(default=0.0, ge=0)
    """Weight of (chosen + rejected)^2 in the loss (arXiv 2312.09244, eq. 2); 0.01 is usual, 0 = off."""
    minimum_accuracy: float | None = Field(default=None, ge=0, le=1)
    """Held-out accuracy below which the chain stops before PPO, all being kept; null = no demand."""
    eval_every: int = Field(default=0, ge=0)
    """Optimizer steps between held-out evaluations; 0 = after training only."""

    @model_validator(mode="after")
    def _no_dropout(self) -> "RewardModelConfig":
        if self.tuning.dropout:
            raise ValueError("tuning.dropout must be 0: scores have to be a function of the text")
        return self
