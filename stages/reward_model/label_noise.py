"""Labels that the reward model disputes with confidence, after confident learning (Northcutt et al. 2021). Pure.

p_i = sigmoid(m_i), m_i = score of chosen - score of rejected, is the model's probability of pair i's label, and 1 - p_i
that of the label being the wrong way round. Confident learning (arXiv 1911.00068, eq. 1 and 2) counts an example for a
class where its probability reaches the class's mean self-confidence. Which side of a pair is called chosen is the
only class there is, so there is one threshold, t = mean of p_i.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from stages.reward_model.calibration import Numbers
from stages.reward_model.quality import Proportion, wilson


@dataclass(frozen=True)
class LabelNoise:
    """What the model says of the labels of held-out pairs, which it has not been trained on."""

    threshold: float
    """t: mean probability that the model gives to the labels."""
    estimate: Proportion | None
    """Disputed among the pairs that are sure one way or the other; None where t <= 1/2, which knows nothing."""
    expected: float | None
    """The same fraction as the model's own probabilities expect it: mean of 1 - max(p, 1 - p) over the sure pairs."""
    disputed: Sequence[int]
    """Pairs with 1 - p >= t, the surest first."""


def label_noise(margins: Numbers) -> LabelNoise:
    """`|{1 - p >= t}| / (|{p >= t}| + |{1 - p >= t}|)` with Wilson's 95 % interval, and the disputed pairs.

    It is as good as the model: a sure mistake of the model looks like a wrong label. Where the model is calibrated,
    what exceeds `expected` is left for the labels.
    """
    agreed, reversed_ = expit(margins), expit(-margins)
    threshold = float(min(agreed.mean(), agreed.max()))  # a mean of equal numbers may round above them
    if threshold <= 0.5:
        return LabelNoise(threshold, None, None, [])
    disputed = np.flatnonzero(reversed_ >= threshold)
    sure = np.maximum(agreed, reversed_) >= threshold
    surest_first = disputed[np.argsort(margins[disputed], kind="stable")]
    expected = float(np.minimum(agreed, reversed_)[sure].mean())
    return LabelNoise(threshold, wilson(len(disputed), int(sure.sum())), expected, surest_first.tolist())
