"""Knobs of the two stages on transformers' Trainer."""

from typing import Literal

from pydantic import Field

from reward.settings import Settings
from stages.models.config import TuningConfig


class TrainerConfig(Settings):
    """What SFT and reward model have in common; a default that differs, or means something else, is the stage's own."""

    enabled: bool = True
    """Run this stage."""
    tuning: TuningConfig = TuningConfig()
    """Which parameters are trained."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the rows; ignored when max_steps is set. More than one overfits a reward model (InstructGPT)."""
    max_steps: int | None = Field(default=None, gt=0)
    """Optimizer steps; null = from epochs."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps of linear warm-up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""
    batch_size: int = Field(default=16, gt=0)
    """Rows per optimizer step, over all devices."""
    microbatch_size: int = Field(default=16, gt=0)
    """Rows per forward pass, per device."""
    max_length: int = Field(default=1024, gt=1)
    """Tokens of prompt and completion together; longer rows are cut at the end."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    group_by_length: bool = False
    """Put rows of similar length into one batch: less padding, a little less shuffling."""
    eval_every: int = Field(default=0, ge=0)
    """Optimizer steps between held-out evaluations; 0 = before and after training only."""
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
