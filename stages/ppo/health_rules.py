"""The rules of a healthy PPO run: what each reads, on which side of its threshold it should stay, what a breach means.

Pure: numbers in, numbers and words out. Imports no torch; docs/health.md has the table.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Side = Literal["above", "below", "factor", "magnitude"]

KL_IN_ERRORS = "objective/kl in standard errors"
KL_OF_BUDGET = "objective/kl as a fraction of ppo.kl_budget"
LEFT_OUT = "fraction of optimizer steps left out"
JUDGE_FALL = "fall of eval/judge from its best in standard errors"
TOLERATED_KL = 0.01
"""Nats per completion that rounding alone may put between two equal policies."""
_WILSON = 2 * 1.959964
"""Width of a 95 % interval in standard errors."""


@dataclass(frozen=True)
class Rule:
    """One thing that should stay on its side of a threshold."""

    name: str
    """Its key in ppo.health."""
    reads: str
    """A metric of docs/metrics.md, or one of `derived`."""
    breach: Side
    """above, below: of the threshold; factor: further than that factor from 1; magnitude: further than that from 0."""
    cause: str
    knob: str
    since_start: Literal["fraction", "rise"] | None = None
    """The reading is divided by its mean over the first iterations, or that is taken off; null = as it is."""

    def breached(self, value: float, threshold: float) -> bool:
        """Whether a reading is beyond the threshold."""
        if self.breach == "above":
            return value > threshold
        if self.breach == "below":
            return value < threshold
        if self.breach == "magnitude":
            return abs(value) > threshold
        return value > threshold or value * threshold < 1

    def describe(self, value: float, threshold: float) -> str:
        """Reading and threshold in words: `policy/entropy as a fraction of its start is 0.21, below 0.3`."""
        how = {"fraction": " as a fraction of its start", "rise": " above its start", None: ""}[self.since_start]
        if self.breach in ("above", "below"):
            return f"{self.reads}{how} is {value:.4g}, {self.breach} {threshold:.4g}"
        lowest = 1 / threshold if self.breach == "factor" else -threshold
        return f"{self.reads}{how} is {value:.4g}, outside {lowest:.4g} to {threshold:.4g}"


RULES = (
    Rule(
        "kl_below_zero",
        KL_IN_ERRORS,
        "below",
        "what is sampled is not what is scored (temperature, truncated sampling, dropout, padding)",
        "look at rollout/logprob_gap; try model.compute: float32 and ppo.temperature: 1",
    ),
    Rule(
        "kl_over_budget",
        KL_OF_BUDGET,
        "above",
        "the KL penalty is too weak for this reward",
        "raise ppo.kl_coef, or set ppo.kl_controller: adaptive with a kl_target within the budget",
    ),
    Rule(
        "approx_kl",
        "policy/approx_kl",
        "above",
        "each iteration moves the policy too far for its rollout",
        "lower ppo.learning_rate or ppo.ppo_epochs, or set ppo.target_kl",
    ),
    Rule(
        "clip_fraction",
        "policy/clip_fraction",
        "above",
        "optimizer steps are too large: much of the rollout no longer counts",
        "lower ppo.learning_rate or ppo.ppo_epochs, or raise ppo.minibatch_size",
    ),
    Rule(
        "entropy",
        "policy/entropy",
        "below",
        "the policy collapses onto a few completions",
        "raise ppo.kl_coef or ppo.entropy_coef, or lower ppo.learning_rate",
        since_start="fraction",
    ),
    Rule(
        "explained_variance",
        "value/explained_variance",
        "below",
        "the value model predicts returns worse than their mean does, so advantages are noise",
        "raise ppo.value_learning_rate or ppo.critic_warmup_steps, or set ppo.value_clip_range: null",
    ),
    Rule(
        "stopped_fraction",
        "rollout/stopped_fraction",
        "below",
        "completions run into ppo.max_new_tokens, or the SFT model has not learned to stop",
        "raise ppo.max_new_tokens, or let ppo.missing_eos cost more; look at how the demonstrations of sft end",
    ),
    Rule(
        "length",
        "rollout/length",
        "factor",
        "the reward pays for length, or for brevity, rather than for what is said",
        "raise ppo.kl_coef, or add a reward term {metric: length}",
        since_start="fraction",
    ),
    Rule(
        "empty_completions",
        "rollout/empty_fraction",
        "above",
        "the reward likes an empty text better than what the policy writes",
        "raise ppo.kl_coef or lower ppo.learning_rate, and look at what the reward says of an empty text",
    ),
    Rule(
        "unique_completions",
        "rollout/unique_fraction",
        "below",
        "the policy gives one answer to many prompts: the reward does not look at the prompt",
        "raise ppo.kl_coef, and read samples.jsonl for the text that the reward likes so well",
        since_start="fraction",
    ),
    Rule(
        "repetition",
        "rollout/repeated_4grams",
        "above",
        "the policy repeats itself within a completion and the reward does not mind",
        "raise ppo.kl_coef, or add a reward term {metric: repetition}",
        since_start="rise",
    ),
    Rule(
        "score_length",
        "objective/score_length_correlation",
        "magnitude",
        "the reward is little more than a measure of length",
        "compare the reward model's accuracy with that of length alone; add a reward term {metric: length}",
    ),
    Rule(
        "overoptimisation",
        JUDGE_FALL,
        "above",
        "the reward still rises, so the policy exploits it where it no longer means what the judge means",
        "raise ppo.kl_coef, set or lower ppo.kl_budget, stop earlier, or use an ensemble of reward models",
    ),
    Rule(
        "skipped_updates",
        LEFT_OUT,
        "above",
        "ppo.target_kl ends iterations early, or batches are left out for numbers that are not finite",
        "lower ppo.learning_rate",
    ),
)


def derived(metrics: Mapping[str, float], kl_budget: float | None, updates: int) -> dict[str, float]:
    """What some rules read and nobody logs; `updates` are the optimizer steps planned for an iteration."""
    found: dict[str, float] = {}
    if "objective/kl" in metrics:
        kl = metrics["objective/kl"]
        found[KL_IN_ERRORS] = kl / max(metrics["objective/kl_se"], TOLERATED_KL)
        if kl_budget is not None:
            found[KL_OF_BUDGET] = kl / kl_budget
    if "policy/updates" in metrics:
        found[LEFT_OUT] = 1 - metrics["policy/updates"] / updates
    return found


@dataclass(frozen=True)
class Judged:
    """What the judge and the reward said of one held-out evaluation."""

    judge: float
    standard_error: float
    score: float

    @classmethod
    def of(cls, metrics: Mapping[str, float]) -> "Judged | None":
        """Those of an evaluation's metrics, None where no judge was asked. The error is that of Wilson's interval."""
        if "eval/judge" not in metrics:
            return None
        width = metrics["eval/judge_high"] - metrics["eval/judge_low"]
        return cls(metrics["eval/judge"], width / _WILSON, metrics["eval/score"])

    def fall_to(self, later: "Judged") -> float:
        """How far the judge fell, in standard errors of the difference; 0 where the score did not rise meanwhile."""
        if later.score <= self.score:
            return 0.0
        return max(0.0, self.judge - later.judge) / math.hypot(self.standard_error, later.standard_error)
