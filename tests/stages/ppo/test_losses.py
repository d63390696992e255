"""PPO's losses and their gradients against literals. Axes: B batch, T completion tokens, V actions.

Numbers in comments are those of docs/invariants.md.
"""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from stages.ppo.losses import approx_kl, clipped, explained_variance, log_ratio, policy_loss, value_loss
from tests.ragged import GARBAGE, mask_of, normal, spoil

DOUBLE = torch.float64
ONE = torch.ones(1, 1, dtype=torch.bool)


def policy_at(ratio: float, advantage: float, **options: float) -> tuple[float, float]:
    """Loss of one token at a probability ratio, and its derivative by the log-probability."""
    logprob = torch.tensor([[math.log(ratio)]], dtype=DOUBLE, requires_grad=True)
    ratios = log_ratio(logprob, torch.zeros(1, 1, dtype=DOUBLE), ONE)
    loss = policy_loss(ratios, torch.tensor([[advantage]], dtype=DOUBLE), ONE, clip_range=0.2, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), logprob)
    return loss.item(), gradient.item()


def value_at(value: float, old: float, target: float, clip_range: float | None) -> tuple[float, float]:
    """Value loss of one token and its derivative by the value."""
    values = torch.tensor([[value]], dtype=DOUBLE, requires_grad=True)
    loss = value_loss(values, torch.full_like(values, old), torch.full_like(values, target), ONE, clip_range)
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    return loss.item(), gradient.item()


# The ratio and what is logged about it


def test_the_log_ratio_is_new_minus_old_and_zero_outside_the_mask():
    ratio = log_ratio(torch.tensor([[-1.0, -4.0, -9.0]]), torch.tensor([[-3.0, -1.0, -2.0]]), mask_of([2], 3))
    assert ratio.tolist() == [[2.0, -3.0, 0.0]]


def test_the_log_ratio_is_held_where_its_exponential_is_finite():
    ratio = log_ratio(torch.tensor([[500.0, -500.0, 19.0]]), torch.zeros(1, 3), mask_of([3], 3))
    assert ratio.tolist() == [[20.0, -20.0, 19.0]]


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(1.0, 0.0), (2.0, 1 - math.log(2)), (0.5, math.log(2) - 0.5), (4.0, 3 - math.log(4))],
)
def test_approx_kl_is_ratio_minus_one_minus_its_log(ratio: float, expected: float):
    assert float(approx_kl(torch.tensor(math.log(ratio), dtype=DOUBLE))) == pytest.approx(expected, abs=1e-12)


def test_ratios_more_than_the_clip_range_from_one_are_counted_as_clipped():
    ratios = torch.tensor([[0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 3.0]])
    assert clipped(ratios.log(), 0.2).tolist() == [[1, 1, 0, 0, 0, 1, 1]]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_log_ratio_and_diagnostics_are_zero_in_padding(garbage: float):  # 4, 8
    mask = mask_of([4, 1], 4)
    ratio = log_ratio(spoil(normal(2, 4, seed=0), mask, garbage), normal(2, 4, seed=1), mask)
    assert ratio[~mask].eq(0).all()
    assert approx_kl(ratio)[~mask].eq(0).all()
    assert clipped(ratio, 0.2)[~mask].eq(0).all()


# Policy loss


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient"),
    [
        (1.0, 1.0, -1.0, -1.0),
        (1.0, 1.1, -1.1, -1.1),
        (1.0, 2.0, -1.2, 0.0),  # far enough already: no more reward for moving on
        (1.0, 0.5, -0.5, -0.5),  # moved the wrong way: always pulled back
        (-1.0, 1.0, 1.0, 1.0),
        (-1.0, 0.9, 0.9, 0.9),
        (-1.0, 2.0, 2.0, 2.0),  # moved the wrong way
        (-1.0, 0.5, 0.8, 0.0),  # far enough
        (2.5, 2.0, -3.0, 0.0),
        (-2.5, 2.0, 5.0, 5.0),
    ],
)
def test_the_clip_is_pessimistic_in_loss_and_gradient(
    advantage: float, ratio: float, loss: float, gradient: float
):  # 23, 24
    assert policy_at(ratio, advantage) == pytest.approx((loss, gradient), abs=1e-12)


@pytest.mark.parametrize(("ratio", "loss"), [(1.05, -1.05), (1.2, -1.1), (0.5, -0.5)])
def test_the_clip_range_is_the_one_asked_for(ratio: float, loss: float):  # 24
    ratios = torch.tensor([[math.log(ratio)]], dtype=DOUBLE)
    assert float(policy_loss(ratios, torch.ones(1, 1, dtype=DOUBLE), ONE, clip_range=0.1)) == pytest.approx(loss)


def test_before_the_first_update_loss_and_gradient_are_minus_the_advantages():  # 1, 23
    mask, logprobs, advantages = (
        mask_of([4, 1, 3], 4),
        normal(3, 4, seed=0).requires_grad_(),
        normal(3, 4, seed=1),
    )
    loss = policy_loss(log_ratio(logprobs, logprobs.detach(), mask), advantages, mask, 0.2)
    loss.sum().backward()
    assert torch.equal(loss, torch.where(mask, -advantages, 0.0))
    assert torch.equal(logprobs.grad, torch.where(mask, -advantages, 0.0))


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient"),
    [
        (-1.0, 10.0, 3.0, 0.0),
        (-2.0, 10.0, 6.0, 0.0),
        (-1.0, 2.0, 2.0, 2.0),
        (-1.0, 0.5, 0.8, 0.0),
        (1.0, 10.0, -1.2, 0.0),
        (1.0, 0.1, -0.1, -0.1),
    ],
)
def test_dual_clip_bounds_the_loss_of_negative_advantages_only(
    advantage: float, ratio: float, loss: float, gradient: float
):  # 25
    assert policy_at(ratio, advantage, dual_clip=3.0) == pytest.approx((loss, gradient), abs=1e-12)


def test_dual_clip_is_off_by_default():  # 25
    assert policy_at(10.0, -1.0) == pytest.approx((10.0, 10.0))


def test_zero_advantages_give_exactly_no_gradient():  # 30
    mask, logprobs = mask_of([4, 2], 4), normal(2, 4, seed=0).requires_grad_()
    ratio = log_ratio(logprobs, normal(2, 4, seed=1), mask)
    policy_loss(ratio, torch.zeros(2, 4), mask, 0.2).sum().backward()
    assert logprobs.grad.eq(0).all()


def chosen_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def policy_gradient(logits: Tensor, tokens: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Gradient of the mean loss by logits of a policy that has not moved yet."""
    leaf = logits.clone().requires_grad_()
    logprobs = chosen_logprobs(leaf, tokens)
    loss = policy_loss(log_ratio(logprobs, logprobs.detach(), mask), advantages, mask, 0.2).sum() / mask.sum()
    return torch.autograd.grad(loss, leaf)[0]


def test_one_gradient_step_favours_tokens_of_positive_advantage_and_disfavours_the_others():  # 31
    mask, logits, advantages = mask_of([5, 3, 1], 5), normal(3, 5, 4, seed=0), normal(3, 5, seed=1)
    tokens = torch.randint(4, (3, 5), generator=torch.Generator().manual_seed(2))
    moved = logits - 0.5 * policy_gradient(logits, tokens, advantages, mask)
    change = chosen_logprobs(moved, tokens) - chosen_logprobs(logits, tokens)
    assert (change * advantages)[mask].min() > 0
    assert change[~mask].eq(0).all()
    assert {float(s) for s in advantages[mask].sign()} == {-1.0, 1.0}


def test_doubling_the_advantages_doubles_the_unclipped_gradient():  # 31
    mask, logits, advantages = mask_of([5, 3, 1], 5), normal(3, 5, 4, seed=0), normal(3, 5, seed=1)
    tokens = torch.zeros(3, 5, dtype=torch.long)
    once = policy_gradient(logits, tokens, advantages, mask)
    assert once.abs().max() > 0.01
    assert torch.equal(policy_gradient(logits, tokens, 2 * advantages, mask), 2 * once)


# Value loss


@pytest.mark.parametrize(
    ("value", "loss", "gradient"),
    [
        (1.1, 0.405, -0.9),  # inside the range: half the squared error
        (0.9, 0.605, -1.1),
        (1.9, 0.32, 0.0),  # beyond it towards the return: the error of 1.2 counts, and does not pull
        (0.5, 1.125, -1.5),  # beyond it away from the return: the true error is the larger
        (4.0, 2.0, 2.0),  # overshoot: the true error is the larger again
    ],
)
def test_the_value_loss_takes_the_larger_of_clipped_and_plain_error(value: float, loss: float, gradient: float):  # 26
    assert value_at(value, old=1.0, target=2.0, clip_range=0.2) == pytest.approx((loss, gradient), abs=1e-12)


def test_the_clipped_value_branch_has_exactly_no_gradient():  # 26
    assert value_at(1.9, old=1.0, target=2.0, clip_range=0.2)[1] == 0.0


@pytest.mark.parametrize(("value", "loss", "gradient"), [(1.9, 0.005, -0.1), (0.5, 1.125, -1.5), (5.0, 4.5, 3.0)])
def test_without_a_range_the_value_loss_is_half_the_squared_error(value: float, loss: float, gradient: float):  # 26
    assert value_at(value, old=1.0, target=2.0, clip_range=None) == pytest.approx((loss, gradient), abs=1e-12)


# Padding


def total_loss(tensors: Sequence[Tensor], mask: Tensor, dual_clip: float | None, value_clip: float | None) -> Tensor:
    """Policy plus value loss of (logprobs, old logprobs, advantages, values, old values, returns)."""
    logprobs, old_logprobs, advantages, values, old_values, returns = tensors
    policy = policy_loss(log_ratio(logprobs, old_logprobs, mask), advantages, mask, 0.2, dual_clip)
    return policy.sum() + value_loss(values, old_values, returns, mask, value_clip).sum()


@pytest.mark.parametrize("clips", [(None, None), (3.0, 0.2)], ids=["plain", "with dual and value clip"])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_padding_changes_no_bit_of_loss_and_gradients(garbage: float, clips: tuple):  # 8
    mask = mask_of([4, 1, 3], 4)
    clean = [normal(3, 4, seed=s) for s in range(6)]
    results = []
    for tensors in (clean, [spoil(x, mask, garbage) for x in clean]):
        leaves = [x.clone().requires_grad_() for x in tensors]
        loss = total_loss(leaves, mask, *clips)
        results.append([loss.detach(), *torch.autograd.grad(loss, [leaves[0], leaves[3]])])
    assert results[0][0].isfinite()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    for gradient in results[1][1:]:
        assert gradient[~mask].eq(0).all()
        assert gradient[mask].ne(0).any()


@pytest.mark.parametrize("garbage", GARBAGE)
def test_losses_are_exactly_zero_in_padding(garbage: float):  # 8
    mask = mask_of([4, 1, 3], 4)
    x, y, z = (spoil(normal(3, 4, seed=s), mask, garbage) for s in range(3))
    assert policy_loss(log_ratio(x, y, mask), z, mask, 0.2)[~mask].eq(0).all()
    assert value_loss(x, y, z, mask, 0.2)[~mask].eq(0).all()


@pytest.mark.parametrize("garbage", GARBAGE)
def test_advantages_in_padding_send_no_gradient_to_the_log_ratio(garbage: float):  # 8
    mask, ratio = mask_of([4, 1, 3], 4), normal(3, 4, seed=0).requires_grad_()
    policy_loss(ratio, spoil(normal(3, 4, seed=1), mask, garbage), mask, 0.2, dual_clip=3.0).sum().backward()
    assert ratio.grad[~mask].eq(0).all()
    assert ratio.grad[mask].ne(0).any()


@pytest.mark.parametrize("extra", [1, 1000])
def test_wider_padding_changes_neither_loss_nor_gradient(extra: int):  # 4
    lengths, clean = [4, 1, 3], [normal(3, 4, seed=s) for s in range(6)]
    wide = [torch.cat([x, torch.full((3, extra), 7.0)], 1) for x in clean]
    results = []
    for tensors in (clean, wide):
        leaves = [x.clone().requires_grad_() for x in tensors]
        mask = mask_of(lengths, tensors[0].shape[1])
        loss = total_loss(leaves, mask, None, 0.2) / mask.sum()
        results.append((loss.detach(), torch.autograd.grad(loss, leaves[0])[0][:, :4]))
    assert float(results[0][0]) == pytest.approx(float(results[1][0]), rel=1e-5)
    assert torch.allclose(results[0][1], results[1][1], rtol=0, atol=1e-6)


# Sums over micro-batches


class LinearToy:
    """Log-probabilities and values linear in shared parameters: what a minibatch of four lengths does to them."""

    def __init__(self) -> None:
        self.mask = mask_of([1, 3, 8, 20], 20)
        self.features = normal(4, 20, 5, seed=0, dtype=DOUBLE)
        self.old, self.advantages, self.returns = (normal(4, 20, seed=s, dtype=DOUBLE) for s in (1, 2, 3))
        self.weights = normal(2, 5, seed=4, dtype=DOUBLE)

    def losses(self, weights: Tensor, rows: Tensor) -> Tensor:
        """Per token, [B, T]."""
        mask, (logprobs, values) = self.mask[rows], (self.features[rows] @ w for w in weights)
        policy = policy_loss(log_ratio(logprobs, self.old[rows], mask), self.advantages[rows], mask, 0.2)
        return policy + value_loss(values, self.old[rows], self.returns[rows], mask, 0.2)

    def gradient(self, parts: Sequence[Tensor], mean_of_means: bool = False) -> Tensor:
        """Accumulated over the parts, each divided by the tokens of all (or wrongly: of its own)."""
        weights = self.weights.clone().requires_grad_()
        for rows in parts:
            tokens = self.mask[rows].sum() * len(parts) if mean_of_means else self.mask.sum()
            (self.losses(weights, rows).sum() / tokens).backward()
        return weights.grad


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [2, 2], [3, 1], [1, 2, 1], [1, 3]])
def test_micro_batches_divided_by_the_tokens_of_all_are_one_big_batch(
    sizes: list[int],
):  # 27
    toy = LinearToy()
    parts = torch.arange(4).split(sizes)
    big = toy.gradient([torch.arange(4)])
    assert (toy.gradient(parts) - big).norm() <= 1e-6 * big.norm()
    # A mean of the parts' means, the usual mistake, shows here.
    assert (toy.gradient(parts, mean_of_means=True) - big).norm() > 0.1 * big.norm()


def test_the_order_of_rows_does_not_matter_to_the_gradient():  # 28
    toy = LinearToy()
    ordered, shuffled = (toy.gradient([torch.tensor(rows)]) for rows in ([0, 1, 2, 3], [2, 0, 3, 1]))
    assert torch.allclose(ordered, shuffled, rtol=0, atol=1e-12)


# Explained variance

RETURNS = [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("values", "returns", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], RETURNS, 1.0),
        ([6.0, 7.0, 8.0, 9.0], RETURNS, 1.0),  # a constant error explains all variance
        ([5.0, 5.0, 5.0, 5.0], RETURNS, 0.0),
        ([0.5, 1.0, 1.5, 2.0], RETURNS, 0.75),
        ([4.0, 3.0, 2.0, 1.0], RETURNS, -3.0),
        ([1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 2.0, 2.0], 0.0),  # nothing to explain
    ],
)
def test_explained_variance_is_one_minus_the_share_of_variance_left(
    values: list[float], returns: list[float], expected: float
):
    assert explained_variance(torch.tensor([values]), torch.tensor([returns]), mask_of([4], 4)) == pytest.approx(
        expected
    )


@pytest.mark.parametrize("garbage", GARBAGE)
def test_explained_variance_looks_at_masked_tokens_only(garbage: float):  # 4
    mask = mask_of([2, 2], 3)
    values = torch.tensor([[0.5, 1.0, garbage], [1.5, 2.0, garbage]])
    returns = torch.tensor([[1.0, 2.0, garbage], [3.0, 4.0, -garbage]])
    assert explained_variance(values, returns, mask) == pytest.approx(0.75)
