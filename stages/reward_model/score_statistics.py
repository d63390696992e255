"""Scores of kinds of texts side by side, and how they go with length. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from stages.reward_model.calibration import Numbers

HISTOGRAM_BINS = 30
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
POINTS = 250
"""Texts of each kind that are kept for the picture of score against length."""


@dataclass(frozen=True)
class Scored:
    """Texts of one kind: their scores and their completions' lengths in tokens, the stop token included."""

    scores: Numbers
    lengths: NDArray[np.int64]


@dataclass(frozen=True)
class Distribution:
    """Scores of one kind of texts."""

    n: int
    mean: float
    std: float
    """ddof 0."""
    quantiles: Mapping[str, float]
    counts: list[int]
    """Texts per bin of the common edges."""
    points: list[tuple[int, float]]
    """(tokens, score) of texts at even distances."""


@dataclass(frozen=True)
class LengthCorrelation:
    """Of score and completion length over n texts."""

    n: int
    pearson: float
    low: float
    high: float
    """Fisher's 95 % interval of it."""
    spearman: float


def common_edges(kinds: Mapping[str, Scored]) -> Numbers:
    """Edges of HISTOGRAM_BINS equal bins over the scores of all kinds."""
    return np.histogram_bin_edges(np.concatenate([kind.scores for kind in kinds.values()]), HISTOGRAM_BINS)


def distribution(kind: Scored, edges: Numbers) -> Distribution:
    """Mean, spread, quantiles and histogram of one kind."""
    scores = kind.scores
    shown = np.unique(np.linspace(0, len(scores) - 1, min(POINTS, len(scores))).round().astype(int))
    return Distribution(
        n=len(scores),
        mean=float(scores.mean()),
        std=float(scores.std()),
        quantiles={f"{100 * q:g} %": float(np.quantile(scores, q)) for q in QUANTILES},
        counts=np.histogram(scores, edges)[0].tolist(),
        points=[(int(kind.lengths[i]), float(scores[i])) for i in shown],
    )


def length_correlation(kind: Scored) -> LengthCorrelation | None:
    """Pearson's and Spearman's coefficients; None for fewer than four texts, or where nothing varies."""
    if len(kind.scores) < 4 or np.ptp(kind.lengths) == 0 or np.ptp(kind.scores) == 0:
        return None
    pearson = stats.pearsonr(kind.lengths, kind.scores)
    interval = pearson.confidence_interval(0.95)
    spearman = stats.spearmanr(kind.lengths, kind.scores)
    found = (pearson.statistic, interval.low, interval.high, spearman.statistic)
    if not all(map(math.isfinite, found)):
        return None
    return LengthCorrelation(len(kind.scores), *map(float, found))
