"""What one PPO iteration shows: a row of metrics, its samples, a line of progress."""

from collections.abc import Sequence
from typing import Any

from stages.base import StageContext
from stages.ppo.scoring import term_rows
from stages.ppo.trainer import Step
from stages.progress import Progress

SHOWN = {
    "score": "objective/score",
    "kl": "objective/kl",
    "len": "rollout/length",
    "stopped": "rollout/stopped_fraction",
    "rollout_s": "time/rollout",
    "scoring_s": "time/scoring",
    "update_s": "time/update",
}
PRINTED = 3
"""Completions that are now and then printed for eyes."""


def log_iteration(context: StageContext, step: Step, episodes: Sequence[int], number: int, progress: Progress) -> None:
    """Log the metrics and all samples of iteration `number` and show that it is done."""
    context.tracker.log(step.metrics, number)
    progress.show(number, {name: step.metrics[path] for name, path in SHOWN.items()})
    context.tracker.samples(sample_rows(step, episodes), number)


def print_samples(step: Step, episodes: Sequence[int]) -> None:
    """The first few completions."""
    for row in sample_rows(step, episodes)[:PRINTED]:
        told = f"  score {row['score']:+.2f}  kl {row['kl']:5.1f}  {row['prompt']}|{row['completion']!r:.150}"
        print(told, flush=True)


def sample_rows(step: Step, episodes: Sequence[int]) -> list[dict[str, Any]]:
    """One plain row per completion."""
    e = step.experience
    kl = (e.logprobs - e.ref_logprobs).sum(1)
    texts = (step.texts.prompts, step.texts.completions)
    columns = zip(episodes, *texts, e.scores, term_rows(step.terms), kl, e.mask.sum(1), e.stopped, strict=True)
    return [
        {
            "episode": int(i),
            "prompt": p,
            "completion": c,
            "score": float(s),
            "terms": terms,
            "kl": float(k),
            "length": int(n),
            "stopped": bool(stop),
        }
        for i, p, c, s, terms, k, n, stop in columns
    ]
