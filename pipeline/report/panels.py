"""What the report plots: one Panel per figure, with the sentence that says what to look for."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Curve:
    """One metric in a panel."""

    metric: str
    label: str
    style: Literal["line", "points", "area"] = "line"
    """line: every step; points: sparse evaluations; area: stacked on the areas before it."""
    right: bool = False
    """Drawn against the right axis."""
    interval: tuple[str, str] | None = None
    """Metrics of the lower and upper end of an error bar."""


@dataclass(frozen=True)
class Panel:
    """One figure: curves over the steps of a stage."""

    title: str
    caption: str
    left: str
    """Left axis: quantity and unit."""
    curves: tuple[Curve, ...]
    right: str = ""
    """Right axis, when a curve uses it."""
    level: float | None = None
    """Height of a dotted reference line on the left axis."""


SFT = (
    Panel(
        "Loss",
        "Both should fall; a held-out loss that turns up while the training loss falls is overfitting.",
        "loss (nats per token)",
        (Curve("sft/loss", "training"), Curve("sft/eval_loss", "held out", "points")),
    ),
    Panel(
        "Token accuracy",
        "The share of next tokens predicted first; a wide gap between the two is memorisation.",
        "accuracy (fraction)",
        (Curve("sft/token_accuracy", "training"), Curve("sft/eval_token_accuracy", "held out", "points")),
    ),
)

REWARD_MODEL = (
    Panel(
        "Loss",
        "Should fall from ln 2 = 0.69 (dotted, a coin toss); one epoch is usually all the data allows.",
        "pairwise loss (nats)",
        (Curve("reward_model/loss", "training"), Curve("reward_model/eval_loss", "held out", "points")),
        level=0.6931,
    ),
    Panel(
        "Accuracy",
        "The share of pairs ranked as the label says; 0.5 (dotted) is a coin toss.",
        "accuracy (fraction)",
        (
            Curve("reward_model/accuracy", "training"),
            Curve("reward_model/eval_accuracy", "held out", "points"),
        ),
        level=0.5,
    ),
    Panel(
        "Margin",
        "Score of the chosen minus score of the rejected text; growth without accuracy is overconfidence.",
        "margin (score units)",
        (Curve("reward_model/margin", "training"),),
    ),
)

PPO = (
    Panel(
        "Score",
        "Should rise and level off, with the held-out points on the training curve.",
        "score (reward units)",
        (Curve("objective/score", "rollouts"), Curve("eval/score", "held out", "points")),
    ),
    Panel(
        "KL to the SFT model",
        "The price of the score: it should level off; negative values or a steep climb mean trouble.",
        "KL (nats per completion)",
        (
            Curve("objective/kl", "rollouts"),
            Curve("eval/kl", "held out", "points"),
            Curve("objective/kl_coef", "kl_coef", right=True),
        ),
        right="kl_coef (score per nat)",
    ),
    Panel(
        "Win rate against the SFT model",
        "How often the policy outscores the SFT model on held-out prompts, 95 % interval; 0.5 is no gain.",
        "win rate (fraction)",
        (Curve("eval/win_rate", "held out", "points", interval=("eval/win_rate_low", "eval/win_rate_high")),),
        level=0.5,
    ),
    Panel(
        "Losses",
        "The value loss should fall early and stay down; the policy loss hovers near zero and tells little.",
        "policy loss (advantages)",
        (Curve("policy/loss", "policy"), Curve("value/loss", "value", right=True)),
        right="value loss (reward units²)",
    ),
    Panel(
        "Size of the updates",
        "Clip fraction below 0.2 and approximate KL below 0.02 are healthy; more means too large steps.",
        "clip fraction of tokens",
        (Curve("policy/clip_fraction", "clip fraction"), Curve("policy/approx_kl", "approx. KL", right=True)),
        right="approx. KL (nats per token)",
    ),
    Panel(
        "Entropy",
        "A slow fall is learning; a collapse towards zero means the policy repeats itself.",
        "entropy (nats per token)",
        (Curve("policy/entropy", "policy"),),
    ),
    Panel(
        "Explained variance",
        "How much of the returns the value model predicts: 1 is all, 0 (dotted) no better than the mean.",
        "explained variance (fraction)",
        (Curve("value/explained_variance", "value model"),),
        level=0.0,
    ),
    Panel(
        "Length and stopping",
        "A length that drifts with the score is the classic way to cheat a reward model.",
        "length (tokens)",
        (Curve("rollout/length", "length"), Curve("rollout/stopped_fraction", "stopped", right=True)),
        right="stopped (fraction)",
    ),
    Panel(
        "Texts",
        "Distinct completions should stay common, repeated 4-grams rare; a score that follows length is hacked.",
        "completions, 4-grams (fraction)",
        (
            Curve("rollout/unique_fraction", "distinct"),
            Curve("rollout/repeated_4grams", "repeated 4-grams"),
            Curve("objective/score_length_correlation", "score and length", right=True),
        ),
        right="correlation",
    ),
    Panel(
        "The judge",
        "Held-out completions judged good, 95 % interval; a fall while the score rises is over-optimisation.",
        "judged good (fraction)",
        (Curve("eval/judge", "held out", "points", interval=("eval/judge_low", "eval/judge_high")),),
    ),
    Panel(
        "Time per step",
        "Where the time goes, phases stacked; a growing rollout share means longer completions.",
        "time (seconds per step)",
        (
            Curve("time/rollout", "rollout", "area"),
            Curve("time/scoring", "scoring", "area"),
            Curve("time/update", "update", "area"),
        ),
    ),
)

STAGE_PANELS = {"sft": SFT, "reward_model": REWARD_MODEL, "ppo": PPO}
