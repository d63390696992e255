"""The reward of a rollout: each rank asks about its own rows, and all know all answers. Axis: B completions."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from reward.base import RewardError
from reward.mixture import Read, RewardMixture, Texts
from stages.world import World

ROUNDING = 1e-5
"""Largest difference of a float32 score from the sum of its terms, as a fraction of their magnitudes."""


@dataclass(frozen=True)
class Scored:
    """What the reward says of all rows."""

    completions: list[str]
    scores: Tensor
    """Sums of the weighted terms, float32 [B]."""
    terms: dict[str, Tensor]
    """What the sources said, [B] each; NaN where a term does not apply."""
    weighted: dict[str, Tensor]
    """What each term adds to the scores, [B]."""


def score_together(reward: RewardMixture, own: Texts, read: Read, world: World, counted: Tensor) -> Scored:
    """Ask about the texts of this rank; running scales then learn from those of all ranks, and all are scored.

    `counted` [B]: the rows of all ranks whose scores PPO will use; scales learn from no others.
    """
    with world.together(RewardError):
        said = reward.said(own, read)
    terms = {name: world.gather(scores) for name, scores in said.items()}
    reward.learn({name: scores[counted.to(scores.device)] for name, scores in terms.items()})
    scores = world.gather(reward.total(said))
    completions = [text for part in world.gather_objects(own.completions) for text in part]
    return Scored(completions, scores, terms, reward.weighted(terms))


def require_sum(scored: Scored) -> None:
    """The scores that PPO gets, which each rank computed for its rows, are the sums of the terms that are logged.

    Raises RewardError REW09 where they are not, which is a mistake of this program.
    """
    weighted = torch.stack(list(scored.weighted.values())).double()
    allowed = ROUNDING * weighted.abs().sum(0) + torch.finfo(torch.float32).tiny
    apart = (scored.scores.double() - weighted.sum(0)).abs()
    for i in (apart > allowed).nonzero().flatten().tolist()[:1]:
        added = ", ".join(f"{name} {values[i]:.6g}" for name, values in scored.weighted.items())
        problem = f"completion {i} has the score {scored.scores[i]:.6g}, and its terms add {added}"
        raise RewardError("REW09", problem, fix="report this: score and log disagree")


def term_metrics(scored: Scored) -> dict[str, float]:
    """Mean and standard deviation of each term where it applies, and what it adds to the mean score."""
    metrics: dict[str, float] = {}
    for name, values in scored.terms.items():
        applying = applied(values).double()
        if len(applying):
            metrics[f"objective/term/{name}"] = float(applying.mean())
            metrics[f"objective/term/{name}_std"] = float(applying.std(correction=0))
    for name, added in scored.weighted.items():
        metrics[f"objective/weighted/{name}"] = float(added.mean())
    return metrics


def applied(values: Tensor) -> Tensor:
    """The scores of the completions to which the term applies."""
    return values[~values.isnan()]


def term_rows(terms: Mapping[str, Tensor]) -> list[dict[str, float | None]]:
    """What the sources said of each completion; None where a term does not apply."""
    columns = [[None if value != value else value for value in values.tolist()] for values in terms.values()]
    return [dict(zip(terms, row, strict=True)) for row in zip(*columns, strict=True)]
