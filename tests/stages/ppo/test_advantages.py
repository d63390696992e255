"""Rewards, advantages and returns against closed forms. Axes: B batch, T completion tokens.

Numbers in comments are those of docs/invariants.md.
"""

import pytest
import torch
from torch import Tensor

from stages.ppo.advantages import gae, token_rewards, whiten
from tests.ragged import GARBAGE, mask_of, normal, spoil

LENGTHS, WIDTH = [6, 1, 4, 5], 6
DOUBLE = torch.float64
each_lambda = pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])


def ragged(dtype: torch.dtype = DOUBLE) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values and mask of four completions; padding holds plausible numbers."""
    mask = mask_of(LENGTHS, WIDTH)
    return normal(4, WIDTH, seed=0, dtype=dtype), normal(4, WIDTH, seed=1, dtype=dtype), mask


def rows(rewards: Tensor, values: Tensor) -> list[tuple[list[float], list[float]]]:
    """Rewards and values of each completion as plain numbers, without padding."""
    return [(rewards[i, :n].tolist(), values[i, :n].tolist()) for i, n in enumerate(LENGTHS)]


# Rewards


def test_rewards_of_a_worked_example():
    kl = torch.tensor([[1.0, -2.0, 4.0], [3.0, 7.0, 7.0]])
    rewards = token_rewards(torch.tensor([10.0, -1.0]), kl, mask_of([3, 1], 3), kl_coef=0.5)
    assert rewards.tolist() == [[-0.5, 1.0, 8.0], [-2.5, 0.0, 0.0]]


def test_without_kl_only_the_last_token_of_each_completion_is_rewarded():  # 14
    scores = torch.tensor([5.0, -1.0, 0.0, 2.0])
    rewards = token_rewards(scores, torch.zeros(4, 4), mask_of([4, 1, 2, 3], 4), kl_coef=0.05)
    assert rewards.tolist() == [[0, 0, 0, 5.0], [-1.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 2.0, 0]]


def test_rewards_of_a_completion_sum_to_score_minus_beta_times_its_kl():  # 14, 42
    kl, _, mask = ragged(torch.float32)
    scores = normal(4, seed=2)
    for beta in (0.0, 0.05, 1.0):
        sums = token_rewards(scores, kl, mask, beta).sum(1).tolist()
        for i, n in enumerate(LENGTHS):
            assert sums[i] == pytest.approx(float(scores[i]) - beta * sum(kl[i, :n].tolist()), abs=1e-6)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_kl_in_padding_never_becomes_reward(garbage: float):  # 8
    kl, _, mask = ragged()
    scores = normal(4, seed=2, dtype=DOUBLE)
    clean = token_rewards(scores, kl, mask, 0.3)
    assert clean[~mask].eq(0).all()
    assert torch.equal(token_rewards(scores, spoil(kl, mask, garbage), mask, 0.3), clean)


# Generalised advantage estimation


def test_gae_of_a_worked_example():
    rewards = torch.tensor([[1.0, 2.0, 0.0], [3.0, 9.0, 9.0], [0.0, 0.0, 8.0]])
    values = torch.tensor([[0.5, 1.0, 9.0], [1.0, 9.0, 9.0], [2.0, 4.0, 4.0]])
    advantages, returns = gae(rewards, values, mask_of([2, 1, 3], 3), gamma=0.5, lam=0.5)
    # Row 2: delta = (0 + 2 - 2, 0 + 2 - 4, 8 - 4) = (0, -2, 4), discounted by 1/4 per token.
    assert advantages.tolist() == [[1.25, 1.0, 0.0], [2.0, 0.0, 0.0], [-0.25, -1.0, 4.0]]
    assert returns.tolist() == [[1.75, 2.0, 0.0], [3.0, 0.0, 0.0], [1.75, 3.0, 8.0]]


@each_lambda
@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_gae_is_the_discounted_sum_of_all_later_temporal_differences(gamma: float, lam: float):  # 15
    rewards, values, mask = ragged()
    advantages, _ = gae(rewards, values, mask, gamma, lam)
    for i, (r, v) in enumerate(rows(rewards, values)):
        after = [*v[1:], 0.0]
        for t in range(len(r)):
            terms = [(gamma * lam) ** (s - t) * (r[s] + gamma * after[s] - v[s]) for s in range(t, len(r))]
            assert float(advantages[i, t]) == pytest.approx(sum(terms), abs=1e-12)


@each_lambda
@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_returns_are_lambda_averages_of_n_step_returns(gamma: float, lam: float):  # 15
    rewards, values, mask = ragged()
    _, returns = gae(rewards, values, mask, gamma, lam)
    for i, (r, v) in enumerate(rows(rewards, values)):
        for t in range(len(r)):
            left = len(r) - t
            n_step = [
                sum(gamma**k * r[t + k] for k in range(n)) + (gamma**n * v[t + n] if n < left else 0.0)
                for n in range(1, left + 1)
            ]
            weights = [(1 - lam) * lam ** (n - 1) for n in range(1, left)] + [lam ** (left - 1)]
            expected = sum(w * g for w, g in zip(weights, n_step, strict=True))
            assert float(returns[i, t]) == pytest.approx(expected, abs=1e-12)


def test_with_lambda_one_the_advantage_is_reward_to_go_minus_value():  # 15
    rewards, values, mask = ragged()
    advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
    for i, (r, v) in enumerate(rows(rewards, values)):
        for t in range(len(r)):
            assert float(advantages[i, t]) == pytest.approx(sum(r[t:]) - v[t], abs=1e-12)
            assert float(returns[i, t]) == pytest.approx(sum(r[t:]), abs=1e-12)


def test_with_lambda_zero_the_advantage_is_the_temporal_difference():  # 15
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[8.0, 16.0, 32.0]])
    advantages, _ = gae(rewards, values, mask_of([3], 3), 1.0, 0.0)
    assert advantages.tolist() == [[1 + 16 - 8, 2 + 32 - 16, 4 - 32]]


def test_without_values_the_advantage_is_the_reward_to_go():  # 15
    rewards = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 0.0]])
    advantages, returns = gae(rewards, torch.zeros(2, 3), mask_of([3, 2], 3), 1.0, 1.0)
    assert advantages.tolist() == returns.tolist() == [[7.0, 6.0, 4.0], [24.0, 16.0, 0.0]]


@each_lambda
@pytest.mark.parametrize("garbage", [0.0, *GARBAGE])
def test_gae_of_a_padded_batch_is_gae_row_by_row_whatever_padding_holds(lam: float, garbage: float):  # 8, 16
    rewards, values, mask = ragged(torch.float32)
    padded = gae(spoil(rewards, mask, garbage), spoil(values, mask, garbage), mask, 1.0, lam)
    for i, n in enumerate(LENGTHS):
        row = slice(i, i + 1)
        alone = gae(rewards[row, :n], values[row, :n], mask[row, :n], 1.0, lam)
        for batch, single in zip(padded, alone, strict=True):
            assert torch.equal(batch[row, :n], single)
            assert batch[row, n:].eq(0).all()


@each_lambda
def test_returns_are_raw_advantages_plus_old_values(lam: float):  # 19
    rewards, values, mask = ragged()
    advantages, returns = gae(rewards, values, mask, 1.0, lam)
    assert torch.equal(returns[mask], (advantages + values)[mask])


def test_neither_gae_nor_whitening_writes_into_its_arguments():  # 19
    rewards, values, mask = ragged()
    advantages, returns = gae(rewards, values, mask, 1.0, 0.95)
    before = [x.clone() for x in (advantages, returns)]
    whiten(advantages, mask)
    fresh_rewards, fresh_values, fresh_mask = ragged()
    assert all(torch.equal(a, b) for a, b in zip(before, (advantages, returns), strict=True))
    assert torch.equal(rewards, fresh_rewards)
    assert torch.equal(values, fresh_values)
    assert torch.equal(mask, fresh_mask)


@each_lambda
def test_shifting_score_and_values_alike_leaves_advantages_alone(lam: float):  # 17
    kl, values, mask = ragged()
    scores, c = normal(4, seed=2, dtype=DOUBLE), 3.5
    plain, _ = gae(token_rewards(scores, kl, mask, 0.1), values, mask, 1.0, lam)
    shifted, _ = gae(token_rewards(scores + c, kl, mask, 0.1), values + c, mask, 1.0, lam)
    assert torch.allclose(plain, shifted, rtol=0, atol=1e-12)


@each_lambda
def test_shifting_the_score_alone_shifts_advantages_by_powers_of_lambda(lam: float):  # 17
    kl, values, mask = ragged()
    scores, c = normal(4, seed=2, dtype=DOUBLE), 3.5
    plain, _ = gae(token_rewards(scores, kl, mask, 0.1), values, mask, 1.0, lam)
    shifted, _ = gae(token_rewards(scores + c, kl, mask, 0.1), values, mask, 1.0, lam)
    for i, n in enumerate(LENGTHS):
        expected = [c * lam ** (n - 1 - t) for t in range(n)] + [0.0] * (WIDTH - n)
        assert (shifted - plain)[i].tolist() == pytest.approx(expected, abs=1e-12)


# Whitening


def test_whitening_of_a_worked_example():  # 18
    x, mask = torch.tensor([[1.0, 2.0, 50.0], [3.0, 4.0, -50.0]]), mask_of([2, 2], 3)
    low, high = 1.5 / 1.25**0.5, 0.5 / 1.25**0.5
    for row, expected in zip(whiten(x, mask), [[-low, -high, 0.0], [high, low, 0.0]], strict=True):
        assert row.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (50.0, 3.0), (0.1, -20.0)])
def test_whitened_tokens_have_mean_zero_and_variance_one(scale: float, shift: float):  # 18
    mask = mask_of([30, 1, 12, 5], 30)
    whitened = whiten(scale * normal(4, 30, seed=0, dtype=DOUBLE) + shift, mask)
    chosen = whitened[mask].tolist()
    mean = sum(chosen) / len(chosen)
    assert abs(mean) < 1e-6
    assert sum((a - mean) ** 2 for a in chosen) / len(chosen) == pytest.approx(1.0, abs=1e-4)
    assert whitened[~mask].eq(0).all()


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_thousand_more_columns_of_padding_change_no_bit(garbage: float):  # 4, 18
    mask, x = mask_of(LENGTHS, WIDTH), normal(4, WIDTH, seed=0)
    wider = torch.cat([x, torch.full((4, 1000), garbage)], 1)
    whitened = whiten(spoil(wider, mask_of(LENGTHS, WIDTH + 1000), garbage), mask_of(LENGTHS, WIDTH + 1000))
    assert torch.equal(whitened[:, :WIDTH], whiten(x, mask))
    assert whitened[:, WIDTH:].eq(0).all()


def test_whitening_takes_its_statistics_over_the_batch_and_not_over_rows():  # 18
    whitened = whiten(torch.tensor([[1.0, 1.0], [3.0, 3.0]]), mask_of([2, 2], 2))
    assert whitened.tolist() == [pytest.approx([-1.0, -1.0]), pytest.approx([1.0, 1.0])]


def test_whitening_survives_a_mean_far_from_zero():  # a difference of squares in float32 would not
    x = torch.tensor([[1e6, 1e6 + 2, 1e6, 1e6 + 2]])
    whitened = whiten(x, mask_of([4], 4))
    assert whitened.dtype == torch.float32
    assert whitened[0].tolist() == pytest.approx([-1, 1, -1, 1], abs=1e-5)


@pytest.mark.parametrize("lengths", [[1, 1], [3, 2]])
def test_equal_advantages_whiten_to_zero(lengths: list[int]):  # 30
    assert whiten(torch.full((2, 3), 0.7), mask_of(lengths, 3)).eq(0).all()


def test_the_order_of_rows_does_not_matter_to_whitening():  # 28
    mask, x, order = mask_of(LENGTHS, WIDTH), normal(4, WIDTH, seed=0), [2, 0, 3, 1]
    assert torch.allclose(whiten(x[order], mask[order]), whiten(x, mask)[order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [0.01, 3.0, 100.0])
def test_the_unit_of_the_score_does_not_matter_if_beta_and_values_share_it(factor: float):  # 20
    kl, values, mask = ragged()
    scores = normal(4, seed=2, dtype=DOUBLE)
    whitened = []
    for k in (1.0, factor):
        advantages, _ = gae(token_rewards(k * scores, kl, mask, k * 0.1), k * values, mask, 1.0, 0.95)
        whitened.append(whiten(advantages, mask))
    # The 1e-8 under the root keeps this from being exact.
    assert torch.allclose(*whitened, rtol=0, atol=1e-3 if factor < 1 else 1e-6)
