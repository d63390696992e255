"""Knobs of supervised fine-tuning."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from reward.settings import Settings
from stages.models.config import TuningConfig
from stages.template import Template


class ClassificationConfig(Settings):
    prompt: str
    """Text before the label: `{text}` once and any other `{column}` of the row; doubled braces mean themselves."""
    completion: str = " {label}"
    """What the model is to write: `{label}` once, where the word of the row's label comes."""
    labels: dict[str, str] = Field(min_length=2)
    """Word that stands for each value of the rows' column `label`; a number is given by its digits."""

    @field_validator("prompt")
    @classmethod
    def _asks_about_the_text(cls, prompt: str) -> str:
        columns = Template(prompt).columns
        if columns.count("text") != 1:
            raise ValueError(f"{prompt!r} has {{text}} {columns.count('text')} times, expected once")
        if "label" in columns:
            raise ValueError(f"{prompt!r} has {{label}}, which would tell the answer")
        return prompt

    @field_validator("completion")
    @classmethod
    def _says_the_label(cls, completion: str) -> str:
        columns = Template(completion).columns
        if columns != ["label"]:
            found = " ".join(f"{{{column}}}" for column in columns) or "no place"
            raise ValueError(f"{completion!r} has {found}, expected {{label}} once and nothing else")
        return completion

    @field_validator("labels")
    @classmethod
    def _words_that_differ(cls, labels: dict[str, str]) -> dict[str, str]:
        words = [word.strip() for word in labels.values()]
        if "" in words:
            raise ValueError("a label has an empty word")
        repeated = sorted({word for word in words if words.count(word) > 1})
        if repeated:
            raise ValueError(f"two labels have the word {repeated[0]!r}, so they could not be told apart")
        return labels


class SFTConfig(Settings):
    enabled: bool = True
    """Run this stage."""
    tuning: TuningConfig = TuningConfig()
    """Which parameters are trained."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the demonstrations; ignored when max_steps is set."""
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
    """Sequences per optimizer step, over all devices."""
    microbatch_size: int = Field(default=16, gt=0)
    """Sequences per forward pass, per device."""
    max_length: int = Field(default=1024, gt=1)
    """Tokens of prompt and completion together; longer rows are cut at the end."""
    completion_only_loss: bool = True
    """Prompt tokens carry no loss. Rows with only `text` always train on every token."""
    packing: bool = False
    """Join rows into blocks of max_length tokens; documents do not see each other."""
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
    samples: int = Field(default=3, ge=0)
    """Held-out prompts completed before and after training."""
    sample_tokens: int = Field(default=48, gt=0)
    """Tokens of each such completion."""
    classification: ClassificationConfig | None = None
    """Rows are `text, label`, made into prompt and completion; SFT reports accuracy and macro-F1 on held-out rows."""

    @model_validator(mode="after")
    def _rows_apart(self) -> "SFTConfig":
        if self.packing and self.classification:
            raise ValueError("packing has no meaning with classification, whose rows stay apart; set packing: false")
        return self
