"""Every option of PPO has its effect, and only that, through the public trainer."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from reward.learned import ModelScores
from reward.mixture import RewardMixture, Term
from stages.base import Diverged
from stages.models.heads import ScoreModel
from tests.ppo_checks import SMALL, experience_of, same, small_gpt2, small_tabular, weights
from tests.ppo_toys import STOP, TabularScorer, tabular_trainer, trie


def test_dual_clip_bounds_the_cost_of_bad_tokens_that_became_likely() -> None:
    toy = small_tabular(vf_coef=0.0)
    e = experience_of(toy)
    bad = replace(e, logprobs=e.logprobs - torch.tensor(10.0).log(), advantages=-e.mask.float())
    rows = torch.arange(12)
    assert toy.trainer.minibatch(bad, rows)["policy/loss"] == pytest.approx(10.0, rel=1e-5)
    toy.trainer.policy.discard()
    toy.trainer.config = toy.trainer.config.model_copy(update={"dual_clip": 3.0})
    assert toy.trainer.minibatch(bad, rows)["policy/loss"] == pytest.approx(3.0, rel=1e-5)
    assert all((p.grad == 0).all() for p in toy.policy.parameters())


def test_an_entropy_bonus_raises_the_entropy() -> None:
    runs = [
        tabular_trainer(0, scores=torch.zeros_like, entropy_coef=coef, kl_coef=0.0, **SMALL | {"steps": 15}).run(15)
        for coef in (0.0, 0.5)
    ]
    without, bonus = ([step.metrics["policy/entropy"] for step in steps] for steps in runs)
    assert bonus[0] == without[0]
    assert bonus[-1] > without[-1] + 0.1 and bonus[-1] > bonus[0] + 0.03


def test_target_kl_ends_the_epochs_before_the_step_that_would_follow() -> None:
    free = small_tabular(learning_rate=0.5).run(1)[0].metrics
    toy = small_tabular(learning_rate=0.5, target_kl=1e-3)
    stopped = toy.run(1)[0].metrics
    assert free["policy/updates"] == 8
    assert stopped["policy/updates"] == 1
    assert toy.trainer.policy.state_dict()["scheduler"]["last_epoch"] == 1
    assert all(p.grad is None for p in toy.policy.parameters())


def test_scores_are_clipped_to_the_reward_clip() -> None:
    toy = small_tabular(reward_clip=0.25)
    step = toy.run(1)[0]
    raw = step.terms["table"]
    assert raw.abs().max() > 0.25
    assert torch.equal(step.experience.scores, raw.clamp(-0.25, 0.25))


def test_normalised_scores_are_divided_by_the_deviation_of_all_scores_so_far() -> None:
    toy = small_tabular(score_normalisation="running")
    first, second = toy.run(2)
    seen = torch.cat([first.terms["table"], second.terms["table"]])
    expected = second.terms["table"] / seen.std(correction=0)
    torch.testing.assert_close(second.experience.scores, expected, atol=1e-6, rtol=0)


def test_a_replaced_score_never_enters_the_running_moments() -> None:
    cut_off = torch.tensor([len(c) == 3 and c[-1] != STOP for c in small_tabular().problem.completions])
    options = {"score_normalisation": "running", "missing_eos": {"mode": "replace", "value": -1.0}}
    calm = small_tabular(**options)
    wild = tabular_trainer(0, scores=lambda s: torch.where(cut_off, 1e6, s), **SMALL | options)
    for a, b in zip(calm.run(2), wild.run(2), strict=True):
        assert not torch.equal(a.terms["table"], b.terms["table"])
        assert torch.equal(a.experience.advantages, b.experience.advantages)
    assert calm.trainer.score_rule.moments.state_dict() == wild.trainer.score_rule.moments.state_dict()


@pytest.mark.parametrize(("mode", "expected"), [
    ("replace", lambda raw: torch.full_like(raw, -1.5)), ("subtract", lambda raw: raw - 1.5), ("off", lambda raw: raw),
])  # fmt: skip
@pytest.mark.parametrize("stop_ids", [[STOP], [2]])
def test_the_missing_eos_rule_touches_exactly_the_rows_without_a_stop_token_in_use(
    mode: str, expected: Any, stop_ids: list[int]
) -> None:
    toy = small_tabular(missing_eos={"mode": mode, "value": -1.5})
    toy.trainer.sampler.stop_ids = tuple(stop_ids)
    toy.trainer.decode = lambda completions, mask: [""] * len(completions)  # the table has no text that ends with 2
    step = toy.run(1)[0]
    e, raw = step.experience, step.terms["table"]
    ends = torch.stack([row[m][-1] for row, m in zip(e.completions, e.mask, strict=True)])
    stopped = torch.isin(ends, torch.tensor(stop_ids))
    assert stopped.any() and not stopped.all() and torch.equal(stopped, e.stopped)
    assert torch.equal(e.scores[stopped], raw[stopped])
    assert torch.equal(e.scores[~stopped], expected(raw)[~stopped])


def test_critic_warm_up_trains_the_value_model_and_leaves_the_policy_bit_for_bit() -> None:
    toy = small_gpt2(critic_warmup_steps=2, ema_decay=0.9, ptx_coef=1.0)
    policy, value = weights(toy.policy), weights(toy.trainer.value.module)
    warm = toy.run(2)
    assert same(weights(toy.policy), policy) and not same(weights(toy.trainer.value.module), value)
    assert "policy/grad_norm" not in warm[-1].metrics
    assert toy.trainer.policy.learning_rate() == 3e-3
    toy.run(2)
    assert not same(weights(toy.policy), policy)
    assert toy.trainer.policy.learning_rate() == 0.0 and toy.trainer.value.learning_rate() == 0.0


def test_the_average_has_the_closed_form_and_leaves_the_weights_alone() -> None:
    toy = small_tabular(ema_decay=0.9, ppo_epochs=1, minibatch_size=24)
    history = [weights(toy.policy)["table.logits"]]
    for _ in range(3):
        toy.run(1)
        history.append(weights(toy.policy)["table.logits"])
    w0, w1, w2, w3 = history
    with toy.trainer.averaged():
        average = weights(toy.policy)["table.logits"]
    torch.testing.assert_close(average, 0.729 * w0 + 0.081 * w1 + 0.09 * w2 + 0.1 * w3, atol=1e-6, rtol=0)
    assert not torch.equal(average, w3) and torch.equal(toy.policy.table.logits, w3)


def test_ptx_lowers_the_loss_of_the_demonstrations() -> None:
    losses = []
    for coef in (1e-9, 5.0):
        toy = small_gpt2(ptx_coef=coef, steps=8)
        fresh = copy.copy(toy.trainer.ptx)
        before = fresh.loss(toy.policy).item()
        metrics = toy.run(8)[-1].metrics
        fresh.drawn = 0
        losses.append(fresh.loss(toy.policy).item())
        assert metrics["policy/ptx_loss"] > 0
    assert losses[1] < before - 0.5 and losses[1] < losses[0] - 0.5


def test_a_score_that_is_not_finite_stops_the_run_before_any_weight_moves() -> None:
    toy = small_tabular()
    toy.run(1)
    child = trie(toy.problem, vocabulary=6)
    scalars = torch.zeros(1, len(child))
    scalars[0, child[child[0, 4], STOP]] = 1e38  # prompt `d`, stopped at once: infinite after the division
    broken = ScoreModel(TabularScorer(child, scalars), std=1e-10).requires_grad_(False)
    toy.trainer.reward = RewardMixture([Term("broken", 1.0, ModelScores(broken))])
    batch = toy.batch()
    rollout = toy.trainer.sampler(toy.policy, batch.ids, batch.episodes)
    bad = [
        e for e, p, c in zip(batch.episodes, batch.ids, rollout.completions, strict=True) if p == [4] and c[0] == STOP
    ]
    before = copy.deepcopy(toy.trainer.state_dict())
    with pytest.raises(Diverged, match=r"step 2: score is not finite for episodes ") as error:
        toy.trainer.step(batch)
    assert bad and str(bad[:8]) in str(error.value)
    assert same(toy.trainer.state_dict(), before)
