"""Knobs of PPO. The names are those of docs/metrics.md and of the papers."""

from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from reward.settings import Settings
from stages.models.config import TuningConfig
from stages.ppo.health_config import HealthConfig

OFF_POLICY_SAMPLING = {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "min_new_tokens": 0}


class MissingEOSConfig(Settings):
    mode: Literal["replace", "subtract", "off"] = "replace"
    """What happens to the score of a completion without a stop token."""
    value: float = -1.0
    """replace: the score it gets (score units); subtract: its magnitude is taken off the score."""


class PPOConfig(Settings):
    enabled: bool = True
    """Run this stage."""
    tuning: TuningConfig = TuningConfig()
    """Which parameters of policy and value model are trained."""

    steps: int = Field(default=100, gt=0)
    """PPO iterations; each samples rollout_batch_size completions."""
    rollout_batch_size: int = Field(default=512, gt=0)
    """Completions per PPO iteration, over all devices."""
    minibatch_size: int = Field(default=128, gt=0)
    """Completions per optimizer step, over all devices."""
    microbatch_size: int = Field(default=16, gt=0)
    """Completions per forward pass, per device."""
    ppo_epochs: int = Field(default=4, gt=0)
    """Passes over each rollout."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    max_prompt_tokens: int = Field(default=512, gt=0)
    """Longest prompt (tokens); longer prompts are refused before training."""
    max_new_tokens: int = Field(default=128, gt=0)
    """Longest completion (tokens)."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; also divides the logits of every scored log-probability."""

    learning_rate: float = Field(default=3e-6, gt=0)
    """Initial learning rate of the policy."""
    value_learning_rate: float | None = Field(default=None, gt=0)
    """Initial learning rate of the value model; null = learning_rate."""
    lr_schedule: Literal["linear", "constant"] = "linear"
    """linear: falls to 0 over all optimizer steps."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps of linear warm-up."""
    adam_eps: float = Field(default=1e-5, gt=0)
    """Adam epsilon."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient norm above which a network's gradients are scaled down; policy and value model apart."""

    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per token."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """GAE lambda."""
    clip_range: float = Field(default=0.2, gt=0)
    """Policy ratio is clipped to 1 +- clip_range."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Lower bound of the objective for negative advantages, in advantages (arXiv 1912.09729); null = off."""
    value_clip_range: float | None = Field(default=0.2, gt=0)
    """Value moves at most this far per rollout without penalty (reward units); null = off."""
    vf_coef: float = Field(default=0.1, ge=0)
    """Weight of the value loss."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus (per token, nats)."""
    whiten_advantages: bool = True
    """Shift and scale advantages to mean 0, variance 1 over all tokens of a rollout."""
    target_kl: float | None = Field(default=None, gt=0)
    """Stop the epochs of a rollout once approx_kl (nats per token) exceeds 1.5 target_kl; null = off."""

    kl_coef: float = Field(default=0.05, ge=0)
    """Weight of the KL penalty in the reward (score units per nat); the start value when adaptive."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """fixed, or proportional control of kl_coef towards kl_target (arXiv 1909.08593)."""
    kl_target: float = Field(default=6.0, gt=0)
    """adaptive: wanted KL to the reference (nats per completion)."""
    kl_horizon: int = Field(default=10_000, gt=0)
    """adaptive: completions over which the coefficient adapts."""

    missing_eos: MissingEOSConfig = MissingEOSConfig()
    """Rule for completions that were cut off."""
    reward_clip: float | None = Field(default=None, gt=0)
    """Scores are clipped to +- this value (score units); null = off."""
    score_normalisation: Literal["none", "running"] = "none"
    """running: divide scores by their running standard deviation; rescales kl_coef with it."""
    critic_warmup_steps: int = Field(default=0, ge=0)
    """First PPO iterations in which only the value model learns."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay per optimizer step of an averaged policy, which is then evaluated and saved; null = off."""
    ptx_coef: float = Field(default=0.0, ge=0)
    """Weight of the SFT loss on demonstrations added to the policy loss (InstructGPT's PTX); 0 = off."""
    ptx_batch_size: int = Field(default=16, gt=0)
    """Demonstrations per optimizer step of that loss."""

    max_empty_fraction: float = Field(default=0.5, gt=0, le=1)
    """Fraction of empty completions in a rollout above which the stage stops."""
    health: HealthConfig = HealthConfig()
    """Rules over the metrics, and what happens when one is broken (docs/health.md)."""

    eval_every: int = Field(default=0, ge=0)
    """PPO iterations between held-out evaluations; 0 = first and last only."""
    eval_prompts: int = Field(default=64, gt=0)
    """Held-out prompts of those evaluations."""
    kl_budget: float | None = Field(default=None, gt=0)
    """The best policy is the one with the highest held-out score at KL below this (nats); null = no limit."""
    sample_every: int = Field(default=5, gt=0)
    """PPO iterations between three printed completions."""
    checkpoint_every: int = Field(default=10, ge=0)
    """PPO iterations between checkpoints; 0 = none but the final model."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """Newest checkpoints that are kept."""
    on_nonfinite: Literal["stop", "rollback"] = "stop"
    """rollback: a batch whose loss or gradient is not finite leaves no trace but a dump, and training goes on."""
    max_skipped_batches: int = Field(default=3, gt=0)
    """rollback: PPO iterations that may be left out so, over the whole stage; one more stops it."""

    @model_validator(mode="before")
    @classmethod
    def _sampling_must_stay_on_policy(cls, values: Any) -> Any:
        for key in OFF_POLICY_SAMPLING.keys() & dict(values).keys():
            raise ValueError(
                f"{key} makes the sampled distribution differ from the scored one, so ratios and KL would be wrong; "
                "remove it (rollouts are always drawn from the full softmax)"
            )
        return values

    @model_validator(mode="after")
    def _keys_fit_together(self) -> "PPOConfig":
        self._require_multiple("rollout_batch_size", "minibatch_size")
        self._require_multiple("minibatch_size", "microbatch_size")
        if self.tuning.dropout:
            raise ValueError("tuning.dropout must be 0: dropout would make the first ratio differ from 1")
        mistakes = self.health.mistakes(self.kl_coef, self.kl_budget, self.checkpoint_every, self.keep_checkpoints)
        if found := "; ".join(mistakes):
            raise ValueError(found)
        return self

    def _require_multiple(self, whole: str, part: str) -> None:
        n, d = getattr(self, whole), getattr(self, part)
        if n % d:
            sizes = dict.fromkeys([max(n // d, 1) * d, (n // d + 1) * d])
            fix = " or ".join(f"ppo.{whole}={size}" for size in sizes)
            problem = f"ppo.{whole} {n} is not a multiple of ppo.{part} {d}"
            raise PydanticCustomError("BATCH02", problem, {"key": whole, "fix": fix})

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of the whole stage, when no target_kl stops an epoch early."""
        return self.steps * self.ppo_epochs * (self.rollout_batch_size // self.minibatch_size)
