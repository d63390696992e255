"""Rollouts, experience and what the trainer's evaluation puts into it. Axes: B batch, T completion tokens.

Numbers in comments are those of docs/invariants.md.
"""

from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from torch import Tensor

from stages.ppo.advantages import gae, token_rewards, whiten
from stages.ppo.experience import Experience
from stages.ppo.kl import k1
from stages.ppo.losses import log_ratio, policy_loss, value_loss
from stages.ppo.metrics import rollout_metrics
from stages.rollout import completion_mask, left_pad
from tests.ppo_toys import tabular_trainer
from tests.ragged import GARBAGE, mask_of, normal, spoil

STOP, PAD = 2, 0


def literal_experience() -> Experience:
    """Completions of three tokens and of one after prompts of one and two; padding holds 99."""
    prompt_ids, prompt_mask = left_pad([[5], [STOP, PAD]], PAD)
    completions = torch.tensor([[7, 8, 9], [STOP, PAD, PAD]])
    mask = completion_mask(completions, [STOP])
    padded = torch.where(mask, 0.0, 99.0)
    return Experience(
        ids=torch.cat([prompt_ids, completions], 1),
        prompt_mask=prompt_mask,
        mask=mask,
        stopped=torch.tensor([False, True]),
        sampled_logprobs=padded + torch.tensor([[-1.0, -2.0, -3.5], [-4.5, 0, 0]]),
        logprobs=padded + torch.tensor([[-1.0, -2.0, -3.0], [-4.0, 0, 0]]),
        ref_logprobs=-padded + torch.tensor([[-2.0, -4.0, -6.0], [-2.0, 0, 0]]),
        entropy=torch.tensor([[1.0, 2.0, 3.0], [4.0, 0, 0]]),
        values=padded + torch.tensor([[0.5, 1.0, 1.5], [2.0, 0, 0]]),
        scores=torch.tensor([3.0, -1.0]),
        rewards=torch.tensor([[-0.5, -1.0, 1.5], [0.0, 0, 0]]),
        advantages=torch.tensor([[1.0, 2.0, 3.0], [4.0, 0, 0]]),
        returns=torch.tensor([[1.0, 2.0, 3.0], [4.0, 0, 0]]),
    )


# Masks


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ([7, 8, STOP, PAD, PAD], [1, 1, 1, 0, 0]),
        ([STOP, PAD, PAD, PAD, PAD], [1, 0, 0, 0, 0]),
        ([7, 8, 9, 8, 7], [1, 1, 1, 1, 1]),
        ([7, 8, 9, 8, STOP], [1, 1, 1, 1, 1]),
        ([7, STOP, STOP, 8, STOP], [1, 1, 0, 0, 0]),  # only the first stop token was an action
        ([7, PAD, 8, STOP, PAD], [1, 1, 1, 1, 0]),  # a sampled padding id is an action like any other
    ],
)
def test_the_mask_reaches_up_to_and_includes_the_first_stop_token(completion: list[int], expected: list[int]):  # 7
    assert completion_mask(torch.tensor([completion]), [STOP]).int().tolist() == [expected]


def test_every_one_of_several_stop_tokens_stops():  # 7, 21
    completions = torch.tensor([[7, 4, 8, 8], [7, 7, STOP, 4], [7, 7, 7, 7]])
    assert completion_mask(completions, [STOP, 4]).sum(1).tolist() == [2, 3, 4]


def test_padding_with_the_stop_token_gives_the_same_mask():  # 6
    completions = torch.tensor([[7, 8, STOP, PAD, PAD], [STOP, PAD, PAD, PAD, PAD], [7, 8, 9, 8, 7]])
    stop_padded = torch.where(completions == PAD, STOP, completions)
    assert torch.equal(completion_mask(completions, [STOP]), completion_mask(stop_padded, [STOP]))


def test_stop_and_padding_ids_inside_a_prompt_keep_their_attention():  # 7
    experience = literal_experience()
    assert experience.prompt_mask.int().tolist() == [[0, 1], [1, 1]]
    assert experience.attention_mask.int().tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def test_completions_start_right_after_the_prompt_columns():
    assert literal_experience().completions.tolist() == [[7, 8, 9], [STOP, PAD, PAD]]


# Choosing rows


@pytest.mark.parametrize("rows", [torch.tensor([1, 0, 1]), torch.tensor([1]), slice(1, 2), slice(0, 2)], ids=str)
def test_choosing_rows_chooses_them_in_every_field(rows: Tensor | slice):  # 28
    experience = literal_experience()
    chosen = experience[rows]
    assert isinstance(chosen, Experience)
    assert len(chosen) == len(torch.arange(2)[rows])
    for field in fields(Experience):
        assert torch.equal(getattr(chosen, field.name), getattr(experience, field.name)[rows])


def test_experience_cannot_be_reassigned():
    with pytest.raises(FrozenInstanceError):
        literal_experience().advantages = torch.zeros(2, 3)


# What is logged about it


def test_metrics_of_a_worked_example():  # 4, 22, 32
    metrics = rollout_metrics(literal_experience(), kl_coef=0.5)
    k3 = [0.367879 + 1.135335 + 2.049787, 4.389056]  # exp(-d) - 1 + d for d = 1, 2, 3 and for d = -2
    expected = {
        "objective/score": 1.0,
        "objective/score_std": 2.0,
        "objective/kl": 2.0,  # sums of 1 + 2 + 3 and of -2, averaged over the two completions
        "objective/kl_se": 4.0,
        "objective/reward": 0.0,
        "objective/kl_coef": 0.5,
        "policy/entropy": 2.5,
        "rollout/length": 2.0,
        "rollout/stopped_fraction": 0.5,
        "rollout/empty_fraction": 0.5,  # the second is its stop token
        "rollout/tokens": 4,
        "rollout/logprob_gap": 0.25,
        "value/explained_variance": 0.75,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["objective/kl_k3"] == pytest.approx(sum(k3) / 2, abs=1e-5)


# From log-probabilities to loss


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_padding_changes_no_bit_from_reference_to_gradient(garbage: float):  # 8
    mask, scores = mask_of([4, 1, 3], 4), normal(3, seed=9)
    clean = [normal(3, 4, seed=s) for s in range(5)]
    results = []
    for tensors in (clean, [spoil(x, mask, garbage) for x in clean]):
        new, old, ref, values, old_values = tensors
        new, values = new.clone().requires_grad_(), values.clone().requires_grad_()
        advantages, returns = gae(token_rewards(scores, k1(old, ref, mask), mask, 0.1), old_values, mask, 1.0, 0.95)
        loss = policy_loss(log_ratio(new, old, mask), whiten(advantages, mask), mask, 0.2).sum()
        loss = loss + value_loss(values, old_values, returns, mask, 0.2).sum()
        results.append([loss.detach(), *torch.autograd.grad(loss, [new, values])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(x.isfinite().all() for x in results[1])
    assert all(gradient[~mask].eq(0).all() for gradient in results[1][1:])


def evaluated(**config: bool | float) -> Experience:
    """The first experience of the product's trainer on a toy whose policy has left its reference."""
    toy = tabular_trainer(0, steps=1, rollout_batch_size=64, minibatch_size=64, microbatch_size=64, **config)
    with torch.no_grad():
        for parameter in toy.policy.parameters():
            parameter.add_(normal(*parameter.shape, seed=1))
    batch = toy.batch()
    rollout = toy.trainer.sampler(toy.policy, batch.ids, batch.episodes)
    return toy.trainer.evaluate(rollout, batch)[0]


def test_rewards_of_an_evaluated_rollout_are_scores_minus_the_kl_penalty():  # 14
    e = evaluated(kl_coef=0.3)
    kl = torch.where(e.mask, e.logprobs - e.ref_logprobs, 0.0).sum(1)
    assert kl.abs().max() > 0.1
    assert torch.allclose(e.rewards.sum(1), e.scores - 0.3 * kl, rtol=0, atol=1e-6)


def test_returns_do_not_know_whether_advantages_are_whitened():  # 19
    plain, whitened = (evaluated(whiten_advantages=flag) for flag in (False, True))
    assert torch.equal(plain.returns, whitened.returns)
    assert torch.allclose(plain.returns[plain.mask], (plain.advantages + plain.values)[plain.mask], rtol=0, atol=1e-6)
    assert not torch.allclose(plain.advantages, whitened.advantages, atol=0.1)


def test_whitened_advantages_of_a_rollout_have_mean_zero_and_variance_one():  # 18
    e = evaluated(whiten_advantages=True)
    chosen = e.advantages[e.mask].double()
    assert abs(float(chosen.mean())) < 1e-6
    assert float(chosen.square().mean()) == pytest.approx(1.0, abs=1e-4)
    assert e.advantages[~e.mask].eq(0).all()
