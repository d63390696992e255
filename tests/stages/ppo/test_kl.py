"""KL estimators against exact distributions, and the controllers' published numbers.

Axes: N completions, V actions, T completion tokens.
Numbers in comments are those of docs/invariants.md.
"""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from stages.ppo.advantages import gae, token_rewards
from stages.ppo.kl import AdaptiveKL, FixedKL, k1, k3
from stages.ppo.losses import approx_kl, log_ratio, policy_loss
from tests.ragged import GARBAGE, mask_of, normal, spoil

Estimator = Callable[[Tensor, Tensor, Tensor], Tensor]
ALL = torch.ones(1, 1, dtype=torch.bool)


def k2(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Half the squared log-ratio, which must not be a reward."""
    return 0.5 * k1(logprobs, ref_logprobs, mask).square()


def test_k1_is_the_log_ratio_of_policy_to_reference_with_its_sign():
    logprobs, ref = torch.tensor([[-1.0, -3.0, -2.0]]), torch.tensor([[-3.0, -1.0, -2.0]])
    assert k1(logprobs, ref, mask_of([3], 3)).tolist() == [[2.0, -2.0, 0.0]]


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(1.0, 0.0), (2.0, 0.5 - 1 + math.log(2)), (0.5, 2 - 1 - math.log(2)), (4.0, 0.6362943611)],
)
def test_k3_is_inverse_ratio_minus_one_plus_its_log(ratio: float, expected: float):
    estimate = k3(torch.tensor([[math.log(ratio) - 1]]), torch.tensor([[-1.0]]), ALL)
    assert float(estimate) == pytest.approx(expected, abs=1e-6)


def test_k3_of_a_tiny_log_ratio_is_not_lost_in_rounding():
    estimate = k3(torch.tensor([[1e-4]]), torch.tensor([[0.0]]), ALL)
    assert float(estimate) == pytest.approx(5e-9, rel=1e-2)


def test_approx_kl_of_a_tiny_log_ratio_is_not_lost_in_rounding():
    assert float(approx_kl(torch.tensor(1e-4))) == pytest.approx(5e-9, rel=1e-2)


@pytest.mark.parametrize("estimator", [k1, k3])
def test_estimates_of_equal_policies_are_exactly_zero(estimator: Estimator):  # 11
    logprobs = normal(3, 5, seed=0)
    assert estimator(logprobs, logprobs.clone(), mask_of([5, 2, 1], 5)).eq(0).all()


@pytest.mark.parametrize("estimator", [k1, k3])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_estimates_are_zero_outside_the_mask_whatever_padding_holds(estimator: Estimator, garbage: float):  # 8
    mask = mask_of([5, 2, 1], 5)
    logprobs, ref = normal(3, 5, seed=0), normal(3, 5, seed=1)
    clean = estimator(logprobs, ref, mask)
    assert clean[~mask].eq(0).all()
    assert clean[mask].ne(0).all()
    assert torch.equal(estimator(spoil(logprobs, mask, garbage), spoil(ref, mask, -garbage), mask), clean)


def categorical_samples(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two distributions over five actions as log-probabilities, and actions drawn from the first."""
    pi, ref = (normal(5, seed=s, dtype=torch.float64).log_softmax(0) for s in (3, 4))
    actions = torch.multinomial(pi.exp(), count, replacement=True, generator=torch.Generator().manual_seed(0))
    return pi, ref, actions


def standard_errors_off(estimates: Tensor, truth: Tensor) -> float:
    return float((estimates.mean() - truth).abs() / (estimates.std() / len(estimates) ** 0.5))


@pytest.mark.parametrize("estimator", [k1, k3])
def test_the_mean_estimate_on_policy_samples_is_the_exact_kl_from_policy_to_reference(
    estimator: Estimator,
):  # 32
    pi, ref, actions = categorical_samples(20_000)
    estimates = estimator(pi[actions], ref[actions], torch.ones(len(actions), dtype=torch.bool))
    exact, reverse = (pi.exp() * (pi - ref)).sum(), (ref.exp() * (ref - pi)).sum()
    assert standard_errors_off(estimates, exact) <= 3
    assert standard_errors_off(estimates, reverse) > 10  # the test can tell the two directions apart


def test_k3_is_never_negative_and_k1_sometimes_is():  # 32
    pi, ref, actions = categorical_samples(20_000)
    everywhere = torch.ones(len(actions), dtype=torch.bool)
    assert k3(pi[actions], ref[actions], everywhere).min() >= 0
    assert k1(pi[actions], ref[actions], everywhere).min() < 0


def test_approx_kl_on_old_samples_is_the_exact_kl_from_old_to_new():  # 32
    old, new, actions = categorical_samples(20_000)
    ratio = log_ratio(new[actions], old[actions], torch.ones(len(actions), dtype=torch.bool))
    exact, reverse = (old.exp() * (old - new)).sum(), (new.exp() * (new - old)).sum()
    assert standard_errors_off(approx_kl(ratio), exact) <= 3
    assert standard_errors_off(approx_kl(ratio), reverse) > 10


class EveryCompletion:
    """All completions of at most two tokens over four actions, action 0 stops; one row of logits per state.

    State 0 is the start, state a > 0 follows first token a.
    """

    def __init__(self) -> None:
        words = [(0, 0)] + list(product((1, 2, 3), range(4)))
        self.tokens = torch.tensor(words)
        self.states = torch.tensor([(0, first) for first, _ in words])
        self.mask = torch.tensor([(True, first != 0) for first, _ in words])
        self.ref = self.logprobs(normal(4, 4, seed=1, dtype=torch.float64))
        self.scores = normal(len(words), seed=2, dtype=torch.float64)

    def logprobs(self, logits: Tensor) -> Tensor:
        """Per token [N, T], 0 after the stop token."""
        chosen = logits.log_softmax(-1)[self.states, self.tokens]
        return torch.where(self.mask, chosen, 0.0)

    def objective(self, logits: Tensor, score_coef: float, beta: float) -> Tensor:
        """`score_coef E[score] - beta KL(pi || ref)` of whole sequences, by summing over all of them."""
        sequence, ref = self.logprobs(logits).sum(1), self.ref.sum(1)
        return (sequence.exp() * (score_coef * self.scores - beta * (sequence - ref))).sum()

    def surrogate(self, logits: Tensor, score_coef: float, beta: float, estimator: Estimator, values: Tensor) -> Tensor:
        """Expectation of PPO's loss with the estimator in the reward, before the policy has moved."""
        logprobs = self.logprobs(logits)
        old = logprobs.detach()
        rewards = token_rewards(score_coef * self.scores, estimator(old, self.ref, self.mask), self.mask, beta)
        advantages, _ = gae(rewards, values[self.states], self.mask, gamma=1.0, lam=1.0)
        loss = policy_loss(log_ratio(logprobs, old, self.mask), advantages, self.mask, clip_range=0.2)
        return (old.sum(1).exp() * loss.sum(1)).sum()


def gradient_error(estimator: Estimator, score_coef: float, beta: float, baseline: bool) -> float:
    """Largest gap between PPO's expected gradient and the gradient of the exact objective."""
    world = EveryCompletion()
    logits = normal(4, 4, seed=0, dtype=torch.float64).requires_grad_()
    values = normal(4, seed=5, dtype=torch.float64) if baseline else torch.zeros(4, dtype=torch.float64)
    (exact,) = torch.autograd.grad(-world.objective(logits, score_coef, beta), logits)
    (ours,) = torch.autograd.grad(world.surrogate(logits, score_coef, beta, estimator, values), logits)
    assert exact.abs().max() > 0.1
    return float((ours - exact).abs().max())


def test_the_enumerated_completions_are_a_distribution():
    world = EveryCompletion()
    assert float(world.ref.sum(1).exp().sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("baseline", [False, True], ids=["without a baseline", "with any baseline"])
@pytest.mark.parametrize(("score_coef", "beta"), [(0.0, 1.0), (1.0, 0.3)], ids=["kl alone", "score and kl"])
def test_k1_in_the_reward_gives_the_exact_gradient(score_coef: float, beta: float, baseline: bool):  # 33
    assert gradient_error(k1, score_coef, beta, baseline) <= 1e-10


@pytest.mark.parametrize("estimator", [k2, k3])
def test_k2_and_k3_in_the_reward_give_another_gradient(estimator: Estimator):  # 33
    assert gradient_error(estimator, 0.0, 1.0, baseline=False) > 0.1


@pytest.mark.parametrize(
    ("kl", "episodes", "expected"),
    [
        (12.0, 512, 0.151536),
        (6.0, 512, 0.15),
        (0.0, 512, 0.148464),
        (6.6, 512, 0.150768),
        (5.4, 512, 0.149232),
        (12.0, 1024, 0.153072),
    ],
)
def test_adaptive_beta_follows_the_published_rule(kl: float, episodes: int, expected: float):  # 22
    controller = AdaptiveKL(0.15, target=6.0, horizon=10_000)
    controller.update(kl, episodes)
    assert controller.coef == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("kl", "expected"), [(7.2, 1.02), (7.3, 1.02), (1e6, 1.02), (4.8, 0.98), (-1e6, 0.98)])
def test_the_relative_error_saturates_at_a_fifth(kl: float, expected: float):  # 22
    controller = AdaptiveKL(1.0, target=6.0, horizon=100)
    controller.update(kl, episodes=10)
    assert controller.coef == pytest.approx(expected, rel=1e-12)


def test_adaptive_updates_compound():  # 22
    controller = AdaptiveKL(1.0, target=6.0, horizon=100)
    controller.update(60.0, episodes=50)
    controller.update(60.0, episodes=50)
    assert controller.coef == pytest.approx(1.21, rel=1e-12)


@pytest.mark.parametrize("kl", [0.0, 6.0, 1e6])
def test_fixed_beta_never_moves(kl: float):  # 22
    controller = FixedKL(0.05)
    for _ in range(10):
        controller.update(kl, episodes=512)
    assert controller.coef == 0.05


def test_a_restored_adaptive_controller_continues_bit_for_bit():  # 22, 38
    controller, restored = (AdaptiveKL(coef, target=6.0, horizon=1000) for coef in (0.15, 99.0))
    controller.update(9.1, episodes=512)
    restored.load_state_dict(controller.state_dict())
    assert restored.coef == controller.coef != 0.15
    for c in (controller, restored):
        c.update(5.3, episodes=512)
    assert restored.coef == controller.coef


def test_a_fixed_controller_has_the_beta_of_the_config_also_after_a_resume():  # 22
    resumed = FixedKL(0.1)
    resumed.load_state_dict(FixedKL(0.05).state_dict())
    assert resumed.coef == 0.1
