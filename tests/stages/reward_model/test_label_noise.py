"""Labels that were turned round are found, and nothing is claimed without knowledge."""

import math

import numpy as np
import pytest

from stages.reward_model.label_noise import label_noise


def test_planted_wrong_labels_are_found_first_and_counted():
    random = np.random.default_rng(0)
    margins = random.uniform(2, 6, 400)
    planted = random.choice(400, 40, replace=False)
    margins[planted] *= -1
    found = label_noise(margins)
    assert set(found.disputed) <= set(planted.tolist())
    assert len(found.disputed) >= 36, "only those nearest to indifference may be missed"
    assert found.estimate.low < 0.1 < found.estimate.high
    assert list(margins[found.disputed]) == sorted(margins[found.disputed])


def test_the_estimate_is_that_of_its_formula():
    p = [0.9] * 3 + [0.6] * 4 + [0.05, 0.4]  # of 0.4 the opposite is likelier, but not surely so
    found = label_noise(np.array([math.log(likely / (1 - likely)) for likely in p]))
    assert found.threshold == pytest.approx((3 * 0.9 + 4 * 0.6 + 0.05 + 0.4) / 9)
    assert (found.estimate.value, found.estimate.n, found.disputed) == (0.25, 4, [7])
    assert found.expected == pytest.approx((3 * 0.1 + 0.05) / 4)


def test_a_model_that_is_no_better_than_a_coin_disputes_nothing():
    found = label_noise(np.array([3.0, -3.0, -0.1]))
    assert (found.estimate, found.disputed) == (None, [])
    assert found.threshold < 0.5


def test_labels_that_are_all_equally_likely_are_all_agreed_with():
    found = label_noise(np.full(7, 0.85))
    assert (found.estimate.value, found.estimate.n) == (0.0, 7)
