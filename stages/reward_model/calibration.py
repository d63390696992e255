"""Whether sigmoid(margin) is a probability: reliability bins and the expected calibration error. Pure.

Of a pair with margin m = score of chosen - score of rejected, the reward model says with confidence sigmoid(|m|) which
side is preferred (Bradley-Terry); its outcome is 1 where the sign of m is that of the label, 1/2 at m = 0, else 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from stages.reward_model.quality import wilson

Numbers = NDArray[np.float64]
BINS = 10
RESAMPLES = 200


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs of similar confidence: what the model said on average, and how often it was right."""

    confidence: float
    value: float
    """Fraction right."""
    low: float
    high: float
    """Wilson's 95 % interval of it."""
    n: int


@dataclass(frozen=True)
class Calibration:
    """How far confidence and accuracy are apart."""

    ece: float
    """Expected calibration error: mean over pairs of abs(accuracy - mean confidence) of their bin; a fraction."""
    ece_if_calibrated: float
    """Mean of the ece that so many pairs would have if every confidence were exactly true."""
    ece_if_calibrated_high: float
    """95th percentile of the same: an ece below it gives no reason to doubt the calibration."""
    overconfidence: float
    """Mean confidence - accuracy; negative where the model is surer than it says."""
    log_loss: float
    """Mean of -log sigmoid(m) in nats; log 2 = 0.693 knows nothing."""
    bins: Sequence[ReliabilityBin]


def outcomes(margins: Numbers) -> Numbers:
    """1 for a pair that is ranked as its label says, 1/2 for a tie, else 0."""
    return np.where(margins > 0, 1.0, np.where(margins == 0, 0.5, 0.0))


def calibration(margins: Numbers) -> Calibration:
    """Calibration over BINS bins of equally many pairs, the order being that of confidence (at least one pair each).

    Equal-mass bins make every bar of the diagram equally certain. The ece is that of Guo et al. 2017 (arXiv 1706.04599,
    eq. 3) on these bins. Finite bins are never exactly right, so it is positive for a perfect model as well: what
    chance makes of it is resampled (Broecker and Smith 2007, consistency bars), always with the same draws.
    """
    confidence = expit(np.abs(margins))
    order = np.argsort(confidence, kind="stable")
    sorted_confidence, sorted_outcomes = confidence[order], outcomes(margins)[order]
    starts = _starts(len(margins))
    draws = np.random.Generator(np.random.Philox(key=0))
    by_chance = [
        _error(sorted_confidence, (draws.random(len(margins)) < sorted_confidence).astype(float), starts)
        for _ in range(RESAMPLES)
    ]
    return Calibration(
        ece=_error(sorted_confidence, sorted_outcomes, starts),
        ece_if_calibrated=float(np.mean(by_chance)),
        ece_if_calibrated_high=float(np.quantile(by_chance, 0.95)),
        overconfidence=float(confidence.mean() - sorted_outcomes.mean()),
        log_loss=float(np.logaddexp(0.0, -margins).mean()),
        bins=_bins(sorted_confidence, sorted_outcomes, starts),
    )


def _starts(n: int) -> NDArray[np.int64]:
    """First place of each bin among n pairs in order; the sizes of bins differ by one at most."""
    return np.unique(np.arange(BINS) * n // BINS)


def _error(confidence: Numbers, outcome: Numbers, starts: NDArray[np.int64]) -> float:
    """Sum over bins of n_b / n abs(mean outcome - mean confidence)."""
    return float(np.abs(np.add.reduceat(outcome - confidence, starts)).sum() / len(confidence))


def _bins(confidence: Numbers, outcome: Numbers, starts: NDArray[np.int64]) -> list[ReliabilityBin]:
    parts = zip(np.split(confidence, starts[1:]), np.split(outcome, starts[1:]), strict=True)
    found = []
    for said, right in parts:
        accuracy = wilson(float(right.sum()), len(right))
        bin_ = ReliabilityBin(float(said.mean()), accuracy.value, accuracy.low, accuracy.high, accuracy.n)
        found.append(bin_)
    return found
