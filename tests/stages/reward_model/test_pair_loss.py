"""The loss of a pair against its formula."""

import math

import pytest
import torch

from stages.reward_model.pair_loss import pair_losses


def test_the_loss_is_minus_the_log_of_how_likely_the_chosen_side_wins():
    found = pair_losses(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0]), 0.0, 0.0)
    assert found.tolist() == pytest.approx([math.log(1 + math.exp(-1)), math.log(1 + math.exp(3))], rel=1e-6)


def test_a_margin_is_what_the_chosen_side_has_to_win_by():
    found = pair_losses(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.5]), 0.0)
    assert found.item() == pytest.approx(math.log(1 + math.exp(-0.5)), rel=1e-6)


def test_centring_adds_the_square_of_the_sum():
    chosen, rejected = torch.tensor([2.0]), torch.tensor([1.0])
    without, with_it = (pair_losses(chosen, rejected, 0.0, weight).item() for weight in (0.0, 0.1))
    assert with_it - without == pytest.approx(0.9, rel=1e-6)
