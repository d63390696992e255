"""A saved reward model measured on held-out texts: what report.json and, in part, stage.json say of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.base import Diverged
from stages.durable import write_json
from stages.models.heads import ScoreModel
from stages.redaction import redactor
from stages.render import Rendered, Row
from stages.reward_model.label_noise import label_noise
from stages.reward_model.pairs import SIDES, Preferences
from stages.reward_model.report import FORMAT, ScoredPairs, report_of
from stages.reward_model.score_statistics import Scored
from stages.reward_model.sft_samples import Samples
from stages.reward_model.statistics import raw_scores

REPORT = "report.json"
ROWS_SHOWN = 20
CHARACTERS = 400


@dataclass(frozen=True)
class Scores:
    """What a saved reward model says of texts, before centring."""

    model: ScoreModel
    pad_id: int
    batch_size: int

    def __call__(self, rows: Sequence[Rendered]) -> list[float]:
        return raw_scores(self.model, [r.ids for r in rows], self.pad_id, self.batch_size)


@dataclass(frozen=True)
class HeldOut:
    """What a reward model is measured on."""

    preferences: Preferences
    demonstrations: Sequence[Rendered]
    samples: Samples | None
    """Completions of the SFT model, where there is one."""


def measured(
    score: Callable[[Sequence[Rendered]], Sequence[float]], held_out: HeldOut, of_demonstrations: Sequence[float]
) -> dict[str, Any]:
    """The content of report.json for centred scores, as they are wherever the model is used.

    `of_demonstrations` are those of the demonstrations. Raises Diverged when a score is not finite.
    """
    preferences, samples = held_out.preferences, held_out.samples
    pairs = _scored_pairs(score, preferences)
    others = {}
    if held_out.demonstrations:
        others["demonstrations"] = _scored(held_out.demonstrations, of_demonstrations)
    if samples:
        others["sft_samples"] = _scored(samples.rows, score(samples.rows))
    noise = label_noise(pairs.margins)
    report = report_of(pairs, others, noise)
    report["label_noise"]["rows"] = [_disputed(pairs, preferences, i) for i in noise.disputed[:ROWS_SHOWN]]
    left_out = len(preferences.rows) - len(preferences.pairs)
    drawn = {"unfinished": samples.unfinished, "max_new_tokens": samples.max_new_tokens} if samples else None
    return {"format": FORMAT, "pairs": str(preferences.path), "left_out": left_out, "sft_sampling": drawn, **report}


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write report.json into the folder of a stage."""
    write_json(folder / REPORT, redactor().tree(report))


def headline_of(report: Mapping[str, Any]) -> dict[str, float]:
    """What of a report stage.json names, under the names that it has there; says it aloud."""
    accuracy, length = report["accuracy"], report["length_baseline"]["value"]
    print(
        f"reward model: held-out accuracy {accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}] "
        f"on {accuracy['n']} pairs; 'longer is better' {length:.3f}",
        flush=True,
    )
    return {
        "accuracy": accuracy["value"],
        "accuracy_low": accuracy["low"],
        "accuracy_high": accuracy["high"],
        "n": accuracy["n"],
        "length_baseline": length,
    }


def _scored_pairs(score: Callable[[Sequence[Rendered]], Sequence[float]], preferences: Preferences) -> ScoredPairs:
    sides = [[getattr(pair, side) for pair in preferences.pairs] for side in SIDES]
    chosen, rejected = (_scored(rows, score(rows)) for rows in sides)
    margins = [pair.margin for pair in preferences.pairs]
    given = None if None in margins else np.array(margins, dtype=np.float64)
    return ScoredPairs(chosen, rejected, given, preferences.sources())


def _scored(rows: Sequence[Rendered], scores: Sequence[float]) -> Scored:
    centred = np.array(scores, dtype=np.float64)
    if not np.isfinite(centred).all():
        raise Diverged(f"{int((~np.isfinite(centred)).sum())} of {len(rows)} held-out texts have no finite score")
    return Scored(centred, np.array([len(r.completion_ids) for r in rows], dtype=np.int64))


def _disputed(pairs: ScoredPairs, preferences: Preferences, index: int) -> dict[str, Any]:
    """A pair whose label the model disputes, with what a person needs to judge it."""
    pair = preferences.pairs[index]
    row = preferences.row(pair)
    margin = float(pairs.margins[index])
    return {
        "row": pair.number,
        "margin": margin,
        "reversed_probability": float(1 / (1 + np.exp(margin))),
        **({"source": pairs.sources[index]} if pairs.sources else {}),
        "prompt": shortened(_prompt(row), from_end=True),
        "chosen": shortened(row["chosen"]),
        "rejected": shortened(row["rejected"]),
    }


def _prompt(row: Row) -> str:
    prompt = row["prompt"]
    return prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)


def shortened(text: str, from_end: bool = False) -> str:
    """At most CHARACTERS of a text; of a prompt its end, which the answer follows."""
    if len(text) <= CHARACTERS:
        return text
    return f"…{text[1 - CHARACTERS :]}" if from_end else f"{text[: CHARACTERS - 1]}…"
