"""The report on a reward model, from scores of held-out pairs and of other texts to plain data. Pure.

docs/reward-model.md defines every quantity.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.reward_model.calibration import Numbers, calibration
from stages.reward_model.groups import by_data_margin, by_length, by_score_margin, by_source
from stages.reward_model.label_noise import LabelNoise
from stages.reward_model.quality import pair_accuracy
from stages.reward_model.score_statistics import Scored, common_edges, distribution, length_correlation

FORMAT = 1
"""Of report.json; another one where a reader of this would not understand it."""


@dataclass(frozen=True)
class ScoredPairs:
    """Held-out pairs with the scores of their sides."""

    chosen: Scored
    rejected: Scored
    data_margins: Numbers | None = None
    """The data's `margin` of each pair, where it has one."""
    sources: Sequence[str] | None = None
    """The data's `source` of each pair, where it has one."""

    @property
    def margins(self) -> Numbers:
        """Score of chosen - score of rejected."""
        return self.chosen.scores - self.rejected.scores

    @property
    def length_differences(self) -> NDArray[np.int64]:
        """Tokens of chosen - tokens of rejected."""
        return self.chosen.lengths - self.rejected.lengths

    @property
    def answers(self) -> Scored:
        """Both sides of all pairs."""
        sides = (self.chosen, self.rejected)
        return Scored(np.concatenate([s.scores for s in sides]), np.concatenate([s.lengths for s in sides]))


def report_of(pairs: ScoredPairs, others: Mapping[str, Scored], noise: LabelNoise) -> dict[str, Any]:
    """Everything that report.json says of scores; `others` are `demonstrations` and `sft_samples`, as there are."""
    kinds = {"chosen": pairs.chosen, "rejected": pairs.rejected, **others}
    edges = common_edges(kinds)
    correlated = {"answers": pairs.answers, **others}
    return {
        "accuracy": asdict(pair_accuracy(pairs.chosen.scores, pairs.rejected.scores)),
        "length_baseline": asdict(pair_accuracy(pairs.chosen.lengths, pairs.rejected.lengths)),
        "calibration": asdict(calibration(pairs.margins)),
        "groups": {name: [asdict(group) for group in groups] for name, groups in _groups(pairs).items()},
        "edges": edges.tolist(),
        "scores": {name: asdict(distribution(kind, edges)) for name, kind in kinds.items()},
        "length_correlation": {
            name: asdict(found) for name, kind in correlated.items() if (found := length_correlation(kind))
        },
        "label_noise": {
            "threshold": noise.threshold,
            "estimate": noise.estimate and asdict(noise.estimate),
            "expected": noise.expected,
            "disputed": len(noise.disputed),
        },
    }


def _groups(pairs: ScoredPairs) -> dict[str, list[Any]]:
    found = {
        "score_margin": by_score_margin(pairs.margins),
        "length_difference": by_length(pairs.margins, pairs.length_differences),
    }
    if pairs.data_margins is not None:
        found["data_margin"] = by_data_margin(pairs.margins, pairs.data_margins)
    if pairs.sources is not None:
        found["source"] = by_source(pairs.margins, pairs.sources)
    return found
