"""Knobs of reward-model training."""

from typing import Literal

from pydantic import Field, model_validator

from reward.settings import Settings
from stages.models.config import TuningConfig


class RewardModelConfig(Settings):
    enabled: bool = True
    """Run this stage."""
    path: str | None = None
    """Base of the reward model (hub id, folder, GGUF file); null = the SFT model."""
    tuning: TuningConfig = TuningConfig()
    """Which parameters are trained; the scalar head always is."""
    members: int = Field(default=1, ge=1, le=100)
    """Reward models that are trained one after another, each with another seed; a reward term combines their scores."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the preferences; more than one overfits (InstructGPT); ignored when max_steps is set."""
    max_steps: int | None = Field(default=None, gt=0)
    """Optimizer steps; null = from epochs."""
    learning_rate: float = Field(default=9e-6, gt=0)
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate after warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps of linear warm-up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""
    batch_size: int = Field(default=64, gt=0)
    """Pairs per optimizer step, over all devices."""
    microbatch_size: int = Field(default=16, gt=0)
    """Pairs per forward pass, per device."""
    max_length: int = Field(default=1024, gt=1)
    """Tokens of prompt and completion together; longer pairs are dropped and counted."""
    centering_coef: float = Field(default=0.0, ge=0)
    """Weight of (chosen + rejected)^2 in the loss (arXiv 2312.09244, eq. 2); 0.01 is usual, 0 = off."""
    minimum_accuracy: float | None = Field(default=None, ge=0, le=1)
    """Held-out accuracy below which the chain stops before PPO, all being kept; null = no demand."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    group_by_length: bool = False
    """Put rows of similar length into one batch: less padding, a little less shuffling."""
    eval_every: int = Field(default=0, ge=0)
    """Optimizer steps between held-out evaluations; 0 = after training only."""
    log_every: int = Field(default=10, gt=0)
    """Optimizer steps between logged rows."""
    checkpoint_every: int = Field(default=200, ge=0)
    """Optimizer steps between checkpoints; 0 = none but the final model."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """Newest checkpoints that are kept."""
    on_nonfinite: Literal["stop", "rollback"] = "stop"
    """rollback: a batch whose loss or gradient is not finite leaves no trace but a dump, and training goes on."""
    max_skipped_batches: int = Field(default=3, gt=0)
    """rollback: optimizer steps that may be left out so, over the whole stage; one more stops it."""

    @model_validator(mode="after")
    def _no_dropout(self) -> "RewardModelConfig":
        if self.tuning.dropout:
            raise ValueError("tuning.dropout must be 0: scores have to be a function of the text")
        return self
