"""Accuracy with its interval, against literals."""

import math

import pytest

from stages.reward_model.quality import mean_and_std, pair_accuracy, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (850, 1000, 0.8265, 0.8708),
    ],
)
def test_wilson_intervals(successes: int, n: int, low: float, high: float):
    interval = wilson(successes, n)
    assert (interval.value, interval.n) == (successes / n, n)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


def test_no_trials_say_nothing():
    interval = wilson(0, 0)
    assert math.isnan(interval.value)
    assert (interval.low, interval.high, interval.n) == (0.0, 1.0, 0)


def test_a_pair_is_won_by_the_higher_score_and_a_tie_is_half():
    assert pair_accuracy([1.0, 2.0, 0.0, -1.0], [0.0, 2.0, 1.0, -2.0]).value == 0.625
    assert pair_accuracy([0.0] * 4, [0.0] * 4).value == 0.5
    assert pair_accuracy([1.0] * 10, [0.0] * 10).low == pytest.approx(0.7225, abs=5e-5)


def test_sides_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        pair_accuracy([1.0, 2.0], [0.0])


def test_mean_and_standard_deviation_divide_by_n():
    assert mean_and_std([1.0, 2.0, 3.0, 4.0]) == (2.5, math.sqrt(1.25))
    assert mean_and_std([7.0]) == (7.0, 0.0)
