"""What a reward model's folder says about its scores: centring constants and probe texts."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from stages.base import InputError
from stages.models.heads import ScoreModel
from stages.render import Rendered, collate

FILE = "reward_model.json"
PROBE_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}


@dataclass(frozen=True)
class RewardStatistics:
    """Written to `final/reward_model.json`. Scores here are raw: before centring, float32 arithmetic of the saver."""

    mean: float
    """Mean score of demonstrations; subtracted wherever the model is used."""
    std: float
    """Standard deviation of their scores."""
    probe_ids: list[list[int]]
    """A few texts as ids."""
    probe_scores: list[float]
    """Their scores when the model was saved; recomputed at every loading."""

    def save(self, final: Path) -> None:
        (final / FILE).write_text(json.dumps(asdict(self), indent=1))

    @staticmethod
    def load(final: Path) -> "RewardStatistics":
        """Raises InputError STAGE01 when the folder is not a reward model of this project."""
        file = final / FILE
        if not file.is_file():
            raise InputError(
                "STAGE01",
                f"{final} has no {FILE}: it is not the final/ of a reward_model stage",
                fix="give runs/<name>/reward_model/final",
            )
        return RewardStatistics(**json.loads(file.read_text()))


@torch.no_grad()
def raw_scores(model: ScoreModel, texts: Sequence[Sequence[int]], pad_id: int, batch_size: int) -> list[float]:
    """Scores of token sequences, in their order; batches are made of similar lengths."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    scores: dict[int, float] = {}
    device = next(model.parameters()).device
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids, attended, _ = collate([Rendered((), texts[i]) for i in chosen], pad_id)
        values = model.scores(ids.to(device), attended.to(device))
        scores |= dict(zip(chosen, values.tolist(), strict=True))
    return [scores[i] for i in range(len(texts))]


def verify_probes(model: ScoreModel, statistics: RewardStatistics, final: Path, pad_id: int) -> None:
    """Raise InputError RM05 unless the loaded model gives the probes the scores they had when it was saved."""
    found = raw_scores(model, statistics.probe_ids, pad_id, len(statistics.probe_ids))
    worst = float((torch.tensor(found) - torch.tensor(statistics.probe_scores)).abs().max())  # NaN stays NaN
    limit = PROBE_TOLERANCE[model.compute] * max(1.0, statistics.std)
    if not worst <= limit:
        raise InputError(
            "RM05",
            f"{final}: a probe text scores {worst:.3g} away from when the model was saved (limit {limit:.2g})",
            fix="train the reward model again; its files were changed, or the base is another one",
        )
