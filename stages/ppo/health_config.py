"""When PPO raises an alarm about its own numbers, and what it does then. Imports no torch."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from reward.settings import Settings

Action = Literal["warn", "lower_lr", "raise_kl_coef", "rollback", "stop"]


class RuleConfig(Settings):
    """A rule that is off; each rule below has a threshold of its own."""

    threshold: float | None = None
    """Value beyond which a reading counts against the run, in the unit of docs/health.md; null = off."""
    action: Action = "warn"
    """What happens when the alarm begins, beside telling it, and every `settle` iterations while it lasts."""
    patience: int = Field(default=3, gt=0)
    """Readings in a row beyond the threshold before the alarm begins, and within it before it is over."""


class KLBelowZero(RuleConfig):
    threshold: float | None = Field(default=-3.0, lt=0)
    """Lowest KL to the reference (standard errors of its estimate); null = off."""
    patience: int = Field(default=2, gt=0)
    """Rollouts in a row."""


class KLOverBudget(RuleConfig):
    threshold: float | None = Field(default=1.0, gt=0)
    """Largest KL to the reference (fraction of ppo.kl_budget); null, or no kl_budget = off."""


class ApproxKL(RuleConfig):
    threshold: float | None = Field(default=0.1, gt=0)
    """Largest KL of the policy before and after an iteration (nats per token); null = off."""


class ClipFraction(RuleConfig):
    threshold: float | None = Field(default=0.3, gt=0, le=1)
    """Largest fraction of tokens whose ratio leaves the clip range; null = off."""


class Entropy(RuleConfig):
    threshold: float | None = Field(default=0.3, gt=0)
    """Smallest entropy per token (fraction of its start); null = off."""


class ExplainedVariance(RuleConfig):
    threshold: float | None = Field(default=0.0, le=1)
    """Smallest explained variance of the value model (fraction); null = off."""
    patience: int = Field(default=10, gt=0)
    """Iterations in a row; a new value model needs some."""


class StoppedFraction(RuleConfig):
    threshold: float | None = Field(default=0.1, gt=0, le=1)
    """Smallest fraction of completions that end with a stop token; null = off."""


class LengthDrift(RuleConfig):
    threshold: float | None = Field(default=2.0, gt=1)
    """Factor by which the mean length may grow or shrink from its start; null = off."""


class EmptyCompletions(RuleConfig):
    threshold: float | None = Field(default=0.1, gt=0, le=1)
    """Largest fraction of empty completions; null = off. Above ppo.max_empty_fraction the stage ends in any case."""


class UniqueCompletions(RuleConfig):
    threshold: float | None = Field(default=0.5, gt=0)
    """Smallest fraction of distinct completions of a rollout (fraction of its start); null = off."""


class Repetition(RuleConfig):
    threshold: float | None = Field(default=0.2, gt=0, lt=1)
    """Rise of the fraction of repeated 4-grams within completions above its start; null = off."""


class ScoreLength(RuleConfig):
    threshold: float | None = Field(default=0.8, gt=0, lt=1)
    """Largest correlation of score and length, of either sign; null = off."""
    patience: int = Field(default=5, gt=0)
    """Rollouts in a row."""


class Overoptimisation(RuleConfig):
    threshold: float | None = Field(default=2.0, gt=0)
    """Fall of eval/judge from its best (standard errors) while eval/score is higher than there; null = off."""
    patience: int = Field(default=1, gt=0)
    """Held-out evaluations in a row; needs evaluation.judge and ppo.eval_every."""


class SkippedUpdates(RuleConfig):
    threshold: float | None = Field(default=0.5, gt=0, lt=1)
    """Largest fraction of an iteration's optimizer steps that are left out; null = off."""
    patience: int = Field(default=2, gt=0)
    """Iterations in a row."""


class HealthConfig(Settings):
    kl_below_zero: KLBelowZero = KLBelowZero()
    kl_over_budget: KLOverBudget = KLOverBudget()
    approx_kl: ApproxKL = ApproxKL()
    clip_fraction: ClipFraction = ClipFraction()
    entropy: Entropy = Entropy()
    explained_variance: ExplainedVariance = ExplainedVariance()
    stopped_fraction: StoppedFraction = StoppedFraction()
    length: LengthDrift = LengthDrift()
    empty_completions: EmptyCompletions = EmptyCompletions()
    unique_completions: UniqueCompletions = UniqueCompletions()
    repetition: Repetition = Repetition()
    score_length: ScoreLength = ScoreLength()
    overoptimisation: Overoptimisation = Overoptimisation()
    skipped_updates: SkippedUpdates = SkippedUpdates()

    start: int = Field(default=3, gt=0)
    """First iterations whose mean is the start that lengths, entropies and the like are compared with."""
    settle: int = Field(default=5, gt=0)
    """Iterations that an action is given to work before it is taken again."""
    lr_factor: float = Field(default=0.5, gt=0, lt=1)
    """lower_lr, rollback: factor of both learning rates from then on."""
    kl_coef_factor: float = Field(default=1.5, gt=1)
    """raise_kl_coef: factor of the KL coefficient."""
    max_rollbacks: int = Field(default=2, gt=0)
    """rollback: how often in the whole stage; once more ends it."""

    @property
    def rules(self) -> Mapping[str, RuleConfig]:
        """The rules that are on, by name."""
        return {name: rule for name, rule in self._all.items() if rule.threshold is not None}

    @property
    def acting(self) -> Mapping[str, RuleConfig]:
        """Those that do more than warn."""
        return {name: rule for name, rule in self.rules.items() if rule.action != "warn"}

    @property
    def rolls_back(self) -> bool:
        """Whether a rule may return to a checkpoint."""
        return any(rule.action == "rollback" for rule in self.acting.values())

    def effective(self) -> dict[str, Any]:
        """What may change the result of a run, a value per key: nothing of it while every rule only warns."""
        actions = {rule.action for rule in self.acting.values()}
        used = {
            "lr_factor": bool(actions & {"lower_lr", "rollback"}),
            "kl_coef_factor": "raise_kl_coef" in actions,
            "max_rollbacks": "rollback" in actions,
            "settle": bool(actions - {"stop"}),
            "start": bool(actions),
        }
        rules = {n: f"{r.action} beyond {r.threshold:g}, patience {r.patience}" for n, r in self.acting.items()}
        return rules | {name: getattr(self, name) for name, needed in used.items() if needed}

    def mistakes(
        self, kl_coef: float, kl_budget: float | None, checkpoint_every: int, keep_checkpoints: int
    ) -> Iterator[str]:
        """Actions that could have no effect with these values of ppo."""
        by_action = {rule.action: name for name, rule in self.acting.items()}
        if "raise_kl_coef" in by_action and kl_coef == 0:
            yield f"health.{by_action['raise_kl_coef']}.action: raise_kl_coef multiplies kl_coef, which is 0"
        if "rollback" in by_action and (checkpoint_every == 0 or keep_checkpoints < 2):
            yield (
                f"health.{by_action['rollback']}.action: rollback needs checkpoints to return to; "
                "set checkpoint_every, and keep_checkpoints to 2 or more"
            )
        if "kl_over_budget" in self.acting and kl_budget is None:
            yield "health.kl_over_budget compares with kl_budget, which is not set"

    @property
    def _all(self) -> Mapping[str, RuleConfig]:
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: rule for name, rule in values.items() if isinstance(rule, RuleConfig)}
