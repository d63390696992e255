"""The config tree of a run. Imports no torch."""

from typing import Literal

from pydantic import Field, model_validator

from reward.config import RewardTerm
from reward.settings import Settings
from stages.models.config import ModelConfig
from stages.ppo.config import PPOConfig
from stages.reward_model.config import RewardModelConfig
from stages.sft.config import SFTConfig

STAGES = ("sft", "reward_model", "ppo")


class RunConfig(Settings):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Folder of the run below `root`."""
    root: str = "runs"
    """Folder of all runs."""


class SplitConfig(Settings):
    train: str
    """JSONL file with one row per line."""
    eval: str | None = None
    """Held-out JSONL file of the same columns."""


class DataConfig(Settings):
    demonstrations: SplitConfig | None = None
    """SFT rows: `prompt, completion`, `messages`, or `text` alone (domain adaptation)."""
    preferences: SplitConfig | None = None
    """Reward-model rows: `prompt, chosen, rejected` and optionally `margin`."""
    prompts: SplitConfig | None = None
    """PPO rows: `prompt` (text or messages) and any columns that reward functions read."""


class TrackingConfig(Settings):
    wandb: Literal["disabled", "auto", "online", "offline"] = "disabled"
    """auto: online with a key or a terminal, else offline. metrics.jsonl is written in any case."""
    project: str = "rlhf-pipeline"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; null = the default of the key."""


class EvaluationConfig(Settings):
    prompts: int = Field(default=256, gt=0)
    """Held-out prompts that base, SFT and PPO policy complete at the end."""
    judge: str | None = None
    """Function like a reward function whose result > 0.5 counts as a success; must not be a reward term."""
    batch_size: int = Field(default=64, gt=0)
    """Completions generated at once."""


class PrepareConfig(Settings):
    script: str
    """Python file run before the first stage when one of `creates` is missing."""
    arguments: list[str] = []
    """Its command line."""
    creates: list[str] = Field(min_length=1)
    """Files or folders that exist once it has run."""


class PipelineConfig(Settings):
    run: RunConfig
    seed: int = Field(default=0, ge=0)
    """Seed of everything random."""
    model: ModelConfig
    prepare: PrepareConfig | None = None
    data: DataConfig = DataConfig()
    sft: SFTConfig = SFTConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    reward: list[RewardTerm] = [RewardTerm(model="reward_model")]
    """Terms of the score that PPO maximises; they are added."""
    ppo: PPOConfig = PPOConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _reference_is_the_same_numbers(self) -> "PipelineConfig":
        if self.model.dtype == "bfloat16" and self.ppo.enabled and self.ppo.tuning.method == "full":
            raise ValueError(
                "ppo.tuning.method: full trains float32 weights, so with model.dtype: bfloat16 the frozen reference "
                "would be rounded and KL would not start at 0; set model.dtype: float32, or method: lora"
            )
        return self
