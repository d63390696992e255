"""The config tree of a run. Imports no torch."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from pipeline.launch_config import LaunchConfig
from reward.config import RewardTerm
from reward.settings import Settings
from stages.deepspeed_config import DeepSpeedConfig
from stages.models.config import ModelConfig, TrunkConfig, TuningConfig
from stages.ppo.config import PPOConfig
from stages.reward_model.config import RewardModelConfig
from stages.sft.config import SFTConfig

STAGES = ("sft", "reward_model", "ppo")


NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What a run or an adapter may be called, so that a name is never a way to another folder."""


class RunConfig(Settings):
    name: str = Field(pattern=NAME)
    """Folder of the run below `root`."""
    root: str = "runs"
    """Folder of all runs."""
    hang_timeout_s: float | None = Field(default=1800, gt=0)
    """Seconds without progress after which a stage is ended and the stacks of its threads shown; null = never."""


class SplitConfig(Settings):
    train: str
    """JSONL file with one row per line."""
    eval: str | None = None
    """Held-out JSONL file of the same columns."""


class DataConfig(Settings):
    demonstrations: SplitConfig | None = None
    """SFT rows: `prompt, completion`, `messages`, `text` alone, or `text, label` with sft.classification."""
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


class CheckConfig(Settings):
    reward_seconds: float = Field(default=60.0, gt=0)
    """Seconds in which a reward function, once imported, has to score four samples before anything is loaded."""
    max_shared_rows: float = Field(default=0.5, ge=0, le=1)
    """Fraction of held-out rows that may also be training rows; fewer are told."""
    max_conflicting_pairs: float = Field(default=0.1, ge=0, le=1)
    """Fraction of preference pairs whose opposite another row may prefer; fewer are told."""


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
    trunk: TrunkConfig = TrunkConfig()
    deepspeed: DeepSpeedConfig | None = None
    prepare: PrepareConfig | None = None
    check: CheckConfig = CheckConfig()
    data: DataConfig = DataConfig()
    sft: SFTConfig = SFTConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    reward: list[RewardTerm] = Field(default=[RewardTerm(model="reward_model")], min_length=1)
    """Terms of the score that PPO maximises; they are added."""
    ppo: PPOConfig = PPOConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="after")
    def _methods_fit_together(self) -> "PipelineConfig":
        mistakes = list(self._method_mistakes())
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    @model_validator(mode="after")
    def _demand_is_measured(self) -> "PipelineConfig":
        held_out = self.data.preferences and self.data.preferences.eval
        if self.reward_model.enabled and self.reward_model.minimum_accuracy is not None and not held_out:
            raise ValueError("reward_model.minimum_accuracy is about held-out pairs; set data.preferences.eval")
        return self

    @model_validator(mode="after")
    def _over_optimisation_is_judged(self) -> "PipelineConfig":
        held_out = self.data.prompts and self.data.prompts.eval
        if "overoptimisation" in self.ppo.health.acting and not (self.evaluation.judge and held_out):
            raise ValueError("ppo.health.overoptimisation acts on a judge; set evaluation.judge and data.prompts.eval")
        return self

    def _method_mistakes(self) -> Iterator[str]:
        """What the stages' fine-tuning methods cannot do after one another, or with this model."""
        tunings: dict[str, TuningConfig] = {s: getattr(self, s).tuning for s in STAGES if getattr(self, s).enabled}
        if "sft" in tunings:
            yield from self._chain_mistakes(tunings)
        ppo = tunings.get("ppo")
        if ppo and self.trunk.frozen_layers and (ppo.method == "full" or ppo.uses_virtual_tokens):
            yield (
                f"trunk.frozen_layers with ppo.tuning.method: {ppo.method}, which changes what every layer computes; "
                "set trunk.frozen_layers: 0, or use lora or adapter"
            )
        if self.sft.packing and "sft" in tunings and tunings["sft"].uses_virtual_tokens:
            yield f"sft.packing puts several texts behind one {tunings['sft'].method} prompt; set sft.packing: false"
        if ppo and self.ppo.ptx_coef and self.sft.classification:
            yield (
                "ppo.ptx_coef mixes demonstrations into PPO, and with sft.classification they are labelled rows; "
                "set ppo.ptx_coef: 0"
            )
        if ppo and self.ppo.ema_decay and self.deepspeed and self.deepspeed.zero_stage == 3:
            yield (
                "ppo.ema_decay averages whole weights, which deepspeed.zero_stage: 3 keeps in parts; "
                "set ppo.ema_decay: null, or zero_stage: 2"
            )
        for stage in [s for s in tunings if tunings[s].method == "full" and self.model.quantization != "none"]:
            yield f"{stage}.tuning.method: full cannot train 4-bit weights; set model.quantization: none, or use lora"
        if self.model.dtype == "bfloat16" and ppo and ppo.method == "full":
            yield (
                "ppo.tuning.method: full trains float32 weights, so with model.dtype: bfloat16 the frozen reference "
                "would be rounded and KL would not start at 0; set model.dtype: float32, or method: lora"
            )

    def _chain_mistakes(self, tunings: dict[str, TuningConfig]) -> Iterator[str]:
        """Stages that cannot take up what SFT leaves."""
        sft, reward_model, ppo = tunings["sft"], tunings.get("reward_model"), tunings.get("ppo")
        if reward_model and not self.reward_model.path and not reward_model.can_follow(sft):
            yield _cannot_follow("reward_model", sft) + ", or set reward_model.path: <model.path>"
        if ppo and not ppo.can_follow(sft):
            yield _cannot_follow("ppo", sft)
        elif ppo and not ppo.starts_at(sft):
            yield (
                f"ppo.tuning.method: {ppo.method} would put new virtual tokens before every prompt, so PPO would not "
                "start at its reference; give sft.tuning the values of ppo.tuning, or let ppo train lora or full"
            )


def _cannot_follow(stage: str, sft: TuningConfig) -> str:
    return (
        f"{stage}.tuning cannot start where sft.tuning ends: {sft.method} cannot be merged into weights; "
        f"give {stage}.tuning the values of sft.tuning, or let sft train lora or full"
    )
