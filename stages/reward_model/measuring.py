"""What a stage says of the reward models that it has saved: constants and probes beside each, headline and report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from stages.render import Rendered
from stages.reward_model.pairs import SIDES, Pair
from stages.reward_model.quality import mean_and_std, pair_accuracy
from stages.reward_model.reporting import HeldOut, Scores, headline_of, measured
from stages.reward_model.statistics import RewardStatistics

PROBES = 8


@dataclass(frozen=True)
class Saved:
    """A reward model as it lies in a folder, with its raw scores."""

    final: Path
    score: Scores

    def describe(self, centring: Sequence[Rendered], known: Sequence[Pair]) -> tuple[RewardStatistics, Sequence[float]]:
        """Write the centring constants, and probes out of `known` pairs, beside it; the scores of `centring` too."""
        probes = [side for p in known[: PROBES // 2] for side in (p.chosen, p.rejected)]
        scores = self.score(centring)
        mean, std = mean_and_std(scores)
        statistics = RewardStatistics(mean, std, [r.ids for r in probes], self.score(probes))
        statistics.save(self.final)
        return statistics, scores


@dataclass(frozen=True)
class CentredScores:
    """The mean of one or several reward models, each centred on its own mean of the demonstrations."""

    members: Sequence[Scores]
    means: Sequence[float]

    def __call__(self, rows: Sequence[Rendered]) -> list[float]:
        return self.combined([member(rows) for member in self.members])

    def combined(self, raw: Sequence[Sequence[float]]) -> list[float]:
        """The same of scores that are there already, one list per reward model."""
        centred = [np.array(scores) - mean for scores, mean in zip(raw, self.means, strict=True)]
        return np.mean(centred, axis=0).tolist()


def described(
    saved: Sequence[Saved], demonstrations: Sequence[Rendered], known: Sequence[Pair], tested: HeldOut | None
) -> tuple[dict[str, float], dict[str, Any] | None]:
    """Describe each reward model; the headline, and the report where pairs are held out.

    The report on several is on the mean of their scores. Without demonstrations the chosen sides of `known` pairs
    centre the scores. `demonstration_mean` and `demonstration_std` are those of the first.
    """
    centring = demonstrations or [p.chosen for p in known]
    statistics, raw = zip(*(one.describe(centring, known) for one in saved), strict=True)
    found: dict[str, float] = {"demonstration_mean": statistics[0].mean, "demonstration_std": statistics[0].std}
    if tested is None:
        return found, None
    score = CentredScores([one.score for one in saved], [one.mean for one in statistics])
    report = measured(score, tested, score.combined(raw))
    of_members = _of_members(saved, tested) if len(saved) > 1 else {}
    return found | headline_of(report) | of_members, report


def _of_members(saved: Sequence[Saved], tested: HeldOut) -> dict[str, float]:
    """Held-out accuracy of each member, and the mean of these."""
    sides = [[getattr(pair, side) for pair in tested.preferences.pairs] for side in SIDES]
    found = [pair_accuracy(*(one.score(rows) for rows in sides)).value for one in saved]
    print(f"each of {len(found)} reward models by itself: {', '.join(f'{value:.3f}' for value in found)}", flush=True)
    named = {f"accuracy_member_{number}": value for number, value in enumerate(found, start=1)}
    return {"members": len(found), "accuracy_mean": fmean(found)} | named
