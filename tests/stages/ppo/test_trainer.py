"""Invariants of one PPO iteration, through the public trainer on models small enough to be exact."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.engine import SCHEDULES, TorchEngine
from stages.ppo.experience import Experience
from stages.ppo.trainer import PPOTrainer
from tests.ppo_checks import experience_of, same, small_gpt2, small_tabular, timeless, weights

MODELS = pytest.mark.parametrize("build", [small_tabular, small_gpt2])


def gradients(trainer: PPOTrainer, experience: Experience, rows: Tensor, **config: Any) -> list[Tensor]:
    """Gradients of both networks from one minibatch, which are then forgotten."""
    replace(trainer, config=trainer.config.model_copy(update=config)).minibatch(experience, rows)
    engines = (trainer.policy, trainer.value)
    grads = [p.grad.clone() for engine in engines for p in engine.module.parameters() if p.grad is not None]
    for engine in engines:
        engine.discard()
    return grads


def minibatches_of(trainer: PPOTrainer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, dict[str, float]]]:
    """Rows and statistics of every minibatch from now on, as they come."""
    seen: list[tuple[Tensor, dict[str, float]]] = []
    minibatch = trainer.minibatch

    def recorded(experience: Experience, rows: Tensor) -> dict[str, float]:
        stats = minibatch(experience, rows)
        seen.append((rows, dict(stats)))
        return stats

    monkeypatch.setattr(trainer, "minibatch", recorded)
    return seen


def assert_relatively_close(actual: list[Tensor], expected: list[Tensor], limit: float) -> None:
    assert len(actual) == len(expected) > 0
    norm = torch.stack([e.norm() for e in expected]).norm()
    assert torch.stack([(a - e).norm() for a, e in zip(actual, expected, strict=True)]).norm() <= limit * norm


@MODELS
def test_the_first_minibatch_has_ratio_one_and_nothing_clipped(build: Any) -> None:
    toy = build()
    e = experience_of(toy)
    rows = torch.arange(12)
    stats = toy.trainer.minibatch(e, rows)
    assert stats["ratio_error"] == 0.0
    assert stats["policy/approx_kl"] == 0.0 and stats["policy/clip_fraction"] == 0.0
    mean_advantage = float(e.advantages[rows].sum() / e.mask[rows].sum())
    assert stats["policy/loss"] == pytest.approx(-mean_advantage, abs=1e-6)


@pytest.mark.parametrize("microbatch", [1, 2, 3, 5])
def test_microbatches_of_any_size_add_up_to_the_gradient_of_the_whole_minibatch(microbatch: int) -> None:
    toy = small_gpt2(entropy_coef=0.1)
    e = experience_of(toy)
    assert len(set(e.mask.sum(1).tolist())) > 1
    rows = torch.arange(11)
    whole = gradients(toy.trainer, e, rows, microbatch_size=11)
    assert_relatively_close(gradients(toy.trainer, e, rows, microbatch_size=microbatch), whole, 1e-6)


def test_the_order_of_rows_in_a_minibatch_changes_nothing() -> None:
    toy = small_gpt2()
    e = experience_of(toy)
    rows = torch.arange(12)
    assert_relatively_close(gradients(toy.trainer, e, rows.flip(0)), gradients(toy.trainer, e, rows), 1e-6)


def test_each_epoch_uses_every_row_once_in_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = small_tabular(ppo_epochs=3)
    seen = minibatches_of(toy.trainer, monkeypatch)
    toy.run(2)
    epochs = torch.cat([rows for rows, _ in seen]).reshape(6, 24)
    assert all(sorted(order.tolist()) == list(range(24)) for order in epochs)
    assert len({tuple(order.tolist()) for order in epochs}) == 6


@pytest.mark.parametrize(("build", "limit"), [(small_tabular, 0.0), (small_gpt2, 1e-6)])
def test_at_learning_rate_zero_no_bit_moves_and_every_ratio_stays_one(
    build: Any, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = build()
    for name in ("policy", "value"):
        module = getattr(toy.trainer, name).module
        still = torch.optim.AdamW(module.parameters(), lr=0.0, weight_decay=0.0)
        setattr(toy.trainer, name, TorchEngine(module, still, SCHEDULES["constant"](1, 0), 1.0))
    before = weights(toy.trainer.policy.module), weights(toy.trainer.value.module)
    seen = minibatches_of(toy.trainer, monkeypatch)
    toy.run(1)
    assert len(seen) == 8 and all(stats["ratio_error"] <= limit for _, stats in seen)
    assert same(weights(toy.trainer.policy.module), before[0]) and same(weights(toy.trainer.value.module), before[1])


@MODELS
def test_without_advantages_the_policy_has_no_gradient(build: Any) -> None:
    toy = build(vf_coef=0.0)
    e = experience_of(toy)
    e = replace(e, advantages=torch.zeros_like(e.advantages))
    grads = gradients(toy.trainer, e, torch.arange(12))
    assert grads and all((g == 0).all() for g in grads)


def test_one_step_raises_good_tokens_and_lowers_bad_ones() -> None:
    toy = small_tabular(kl_coef=0.0, ppo_epochs=1)
    e = experience_of(toy)
    token = 2
    chosen = e.completions[:, 0] == token
    for sign in (1.0, -1.0):
        advantages = torch.zeros_like(e.advantages)
        advantages[chosen, 0] = sign
        before = weights(toy.policy)
        toy.trainer.minibatch(replace(e, advantages=advantages), torch.arange(24))
        torch.optim.SGD(toy.policy.parameters(), lr=0.1).step()
        toy.trainer.policy.discard()
        after = toy.trainer.policy.module(e.ids, e.attention_mask, e.mask).logprobs
        assert chosen.any() and (sign * (after - e.logprobs)[chosen, 0] > 0).all()
        toy.policy.load_state_dict(before, strict=False)


def test_twice_the_advantage_is_twice_the_gradient() -> None:
    toy = small_gpt2(vf_coef=0.0)
    e = experience_of(toy)
    once = gradients(toy.trainer, e, torch.arange(12))
    twice = gradients(toy.trainer, replace(e, advantages=2 * e.advantages), torch.arange(12))
    assert all(torch.equal(t, 2 * o) for t, o in zip(twice, once, strict=True))


@MODELS
def test_the_same_seed_gives_the_same_run_bit_for_bit_and_another_seed_other_rollouts(build: Any) -> None:
    first, again = build(), build()
    metrics = [[timeless(step.metrics) for step in toy.run(2)] for toy in (first, again)]
    assert metrics[0] == metrics[1]
    assert same(first.trainer.state_dict(), again.trainer.state_dict())
    other = build()
    other.trainer.sampler.seed = 1
    fresh = build()
    assert not torch.equal(other.run(1)[0].experience.completions, fresh.run(1)[0].experience.completions)


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_the_schedule_steps_with_the_optimizer_and_ends_where_it_should_in_all_groups(schedule: str) -> None:
    toy = small_gpt2(lr_schedule=schedule, steps=3)
    config, module = toy.trainer.config, toy.trainer.policy.module
    first, *others = module.parameters()
    optimizer = torch.optim.AdamW([{"params": [first], "lr": 1e-3}, {"params": others, "lr": 4e-3}])
    toy.trainer.policy = TorchEngine(module, optimizer, SCHEDULES[schedule](config.optimizer_steps, 0), 1.0)
    toy.run(3)
    assert config.optimizer_steps == 24
    assert toy.trainer.policy.state_dict()["scheduler"]["last_epoch"] == 24
    assert {int(state["step"]) for state in optimizer.state.values()} == {24}
    end = [0.0, 0.0] if schedule == "linear" else [1e-3, 4e-3]
    assert [group["lr"] for group in optimizer.param_groups] == end


@MODELS
def test_the_logged_reward_is_the_score_minus_the_weighted_kl(build: Any) -> None:
    toy = build(kl_controller="adaptive", kl_target=0.05, kl_horizon=50)
    coefs = set()
    for step in toy.run(4):
        m = step.metrics
        coefs.add(m["objective/kl_coef"])
        assert m["objective/reward"] == pytest.approx(
            m["objective/score"] - m["objective/kl_coef"] * m["objective/kl"], abs=1e-5
        )
        assert m["objective/kl"] >= -3 * m["objective/kl_se"]
    assert len(coefs) == 4
