"""Reliability bins and calibration error against closed forms and literals."""

import math

import numpy as np
import pytest

from stages.reward_model.calibration import calibration


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def with_confidence(p: float, right: int, n: int) -> list[float]:
    """Margins of n pairs ranked with confidence p, of which `right` are ranked as the labels say."""
    return [logit(p)] * right + [-logit(p)] * (n - right)


def test_a_constructed_calibration_error():  # two levels of confidence, each filling five of the ten bins
    margins = np.array(with_confidence(0.6, 20, 50) + with_confidence(0.9, 50, 50))
    # Pairs of equal confidence keep the file's order: 20 right ones fill two bins, 30 wrong ones three.
    found = calibration(margins)
    assert [b.n for b in found.bins] == [10] * 10
    assert [b.confidence for b in found.bins] == pytest.approx([0.6] * 5 + [0.9] * 5)
    assert [b.value for b in found.bins] == [1, 1, 0, 0, 0, 1, 1, 1, 1, 1]
    assert found.ece == pytest.approx((2 * 0.4 + 3 * 0.6 + 5 * 0.1) / 10)
    assert found.overconfidence == pytest.approx(0.75 - 0.7)
    nats = (20 * -math.log(0.6) + 30 * -math.log(0.4) + 50 * -math.log(0.9)) / 100
    assert found.log_loss == pytest.approx(nats)


def test_a_bin_has_the_interval_of_its_own_pairs():
    found = calibration(np.array(with_confidence(0.8, 8, 10) * 10))
    assert found.bins[3].n == 10
    assert (found.bins[3].low, found.bins[3].high) == (
        pytest.approx(0.4902, abs=5e-5), pytest.approx(0.9433, abs=5e-5)
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_a_calibrated_model_has_no_more_error_than_chance_makes(seed: int):
    random = np.random.default_rng(seed)
    size = np.abs(random.normal(0, 2, 5000))
    margins = np.where(random.random(5000) < 1 / (1 + np.exp(-size)), size, -size)
    found = calibration(margins)
    assert found.ece < 0.02
    assert abs(found.overconfidence) < 0.02
    assert 0.3 * found.ece_if_calibrated < found.ece < 1.5 * found.ece_if_calibrated_high


def test_scores_that_are_three_times_too_large_are_found_out():
    random = np.random.default_rng(1)
    size = np.abs(random.normal(0, 1, 3000))
    margins = np.where(random.random(3000) < 1 / (1 + np.exp(-size)), size, -size)
    honest, loud = calibration(margins), calibration(3 * margins)
    assert loud.ece > 3 * loud.ece_if_calibrated_high
    assert loud.overconfidence == pytest.approx(loud.ece, abs=0.02)
    assert loud.log_loss > honest.log_loss


def test_a_model_that_says_nothing_is_right_half_the_time_and_says_so():
    found = calibration(np.zeros(40))
    assert (found.ece, found.overconfidence, found.log_loss) == (0.0, 0.0, pytest.approx(math.log(2)))


def test_fewer_pairs_than_bins_are_a_bin_each():
    found = calibration(np.array([logit(0.75), -logit(0.75), logit(0.9)]))
    assert [b.n for b in found.bins] == [1, 1, 1]
    assert found.ece == pytest.approx((0.25 + 0.75 + 0.1) / 3)


def test_very_large_margins_are_no_overflow():
    with np.errstate(over="raise", invalid="raise"):
        found = calibration(np.array([1000.0, -1000.0]))
    assert found.log_loss == pytest.approx(500.0)
