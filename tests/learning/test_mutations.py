"""Known bugs of PPO, put into the product one at a time: the gate of the tabular design must reject each.

A bug that passed here would need a unit test of its own; that holds for `min` in place of `max` in the clipped
loss, whitening over padding, and means of microbatch means, which leave the optimum where it is.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from stages import rollout
from stages.ppo import losses, trainer
from stages.ppo.kl import k1, k3
from stages.ppo.scores import ScoreRule
from tests.ppo_toys import tabular_trainer

STEPS = 40
LIMIT = 0.005  # nats of KL(pi || pi*); the unchanged product ends at 0.003
Patch = pytest.MonkeyPatch


def klopt(steps: int = STEPS, **config: float) -> float:
    toy = tabular_trainer(0, steps=steps, **config)
    toy.run(steps)
    return toy.exact().klopt


def advantage_sign(patch: Patch) -> None:
    whiten = trainer.whiten
    patch.setattr(trainer, "whiten", lambda x, mask: -whiten(x, mask))


def kl_sign(patch: Patch) -> None:
    patch.setattr(trainer, "k1", lambda new, ref, mask: -k1(new, ref, mask))


def reference_follows_the_policy(patch: Patch) -> None:
    patch.setattr(trainer, "k1", lambda new, ref, mask: k1(new, new, mask))


def k2_in_the_reward(patch: Patch) -> None:
    patch.setattr(trainer, "k1", lambda new, ref, mask: 0.5 * k1(new, ref, mask).square())


def k3_in_the_reward(patch: Patch) -> None:
    patch.setattr(trainer, "k1", k3)


def stop_token_outside_the_mask(patch: Patch) -> None:
    def mask_without_stop(completions: Tensor, stop_ids: list[int]) -> Tensor:
        before = torch.isin(completions, torch.tensor(stop_ids)).cumsum(1) == 0
        before[:, 0] = True  # a completion has at least one action
        return before

    patch.setattr(rollout, "completion_mask", mask_without_stop)


def sampling_temperature_unscored(patch: Patch) -> None:
    init = rollout.InverseCDF.__init__
    patch.setattr(rollout.InverseCDF, "__init__", lambda self, draws, temperature: init(self, draws, 0.7))


def score_lost_on_stopped_rows(patch: Patch) -> None:
    patch.setattr(ScoreRule, "__call__", lambda self, scores, stopped: torch.where(stopped, 0.0, scores))


def scores_scaled_by(factor: Callable[[Tensor, int], Tensor]) -> Callable[[Patch], None]:
    """The last token's score times factor(length, T), which is what GAE makes of a score in a later column."""

    def mutate(patch: Patch) -> None:
        token_rewards = trainer.token_rewards

        def mutated(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
            return token_rewards(scores * factor(mask.sum(1), mask.shape[1]), kl, mask, kl_coef)

        patch.setattr(trainer, "token_rewards", mutated)

    return mutate


# A score in the column after the stop token, whose value is 0, comes back as lambda * score.
score_after_the_stop_token = scores_scaled_by(lambda length, width: torch.where(length < width, 0.95, 1.0))
score_in_the_last_column = scores_scaled_by(lambda length, width: 0.95 ** (width - length))


def score_at_the_first_token(patch: Patch) -> None:
    def mutated(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
        first = torch.arange(mask.shape[1]) == 0
        return torch.where(mask, scores[:, None] * first - kl_coef * kl, 0.0)

    patch.setattr(trainer, "token_rewards", mutated)


def score_on_every_token(patch: Patch) -> None:
    patch.setattr(
        trainer, "token_rewards", lambda scores, kl, mask, coef: torch.where(mask, scores[:, None] - coef * kl, 0.0)
    )


def whitened_rewards(patch: Patch) -> None:
    token_rewards = trainer.token_rewards

    def mutated(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
        rewards = token_rewards(scores, kl, mask, kl_coef)
        mean, std = rewards[mask].mean(), rewards[mask].std()
        return torch.where(mask, (rewards - mean) / std + mean, 0.0)

    patch.setattr(trainer, "token_rewards", mutated)


def gae_with(next_value: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Patch], None]:
    """GAE whose bootstrap value, [B, T], is next_value(values, mask)."""

    def mutate(patch: Patch) -> None:
        def mutated(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
            delta = torch.where(mask, rewards + gamma * next_value(values, mask) - values, 0.0)
            advantages, running = torch.zeros_like(delta), torch.zeros_like(delta[:, 0])
            for t in reversed(range(delta.shape[1])):
                running = advantages[:, t] = delta[:, t] + gamma * lam * running
            return advantages, torch.where(mask, advantages + values, 0.0)

        patch.setattr(trainer, "gae", mutated)

    return mutate


def shifted(values: Tensor) -> Tensor:
    return torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)


unchanged_gae = gae_with(lambda values, mask: shifted(torch.where(mask, values, 0.0)))
values_after_the_stop_token = gae_with(lambda values, mask: shifted(values))
bootstrap_from_the_same_state = gae_with(lambda values, mask: values)


def returns_from_whitened_advantages(patch: Patch) -> None:
    gae = trainer.gae

    def mutated(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
        advantages, _ = gae(rewards, values, mask, gamma, lam)
        return advantages, torch.where(mask, trainer.whiten(advantages, mask) + values, 0.0)

    patch.setattr(trainer, "gae", mutated)


def kl_in_the_loss(penalty: Callable[[Tensor], Tensor]) -> Callable[[Patch], None]:
    """No KL in the reward, but kl_coef * penalty(log pi - log ref) in the loss."""

    def mutate(patch: Patch) -> None:
        minibatch, policy_loss = trainer.PPOTrainer.minibatch, losses.policy_loss
        offsets: list[Tensor] = []  # log pi_old - log ref of the minibatch at hand

        def remember(self: trainer.PPOTrainer, experience: trainer.Experience, rows: Tensor) -> trainer.Metrics:
            offsets.append((experience.logprobs - experience.ref_logprobs)[rows])
            return minibatch(self, experience, rows)

        def with_penalty(ratio: Tensor, advantages: Tensor, mask: Tensor, *clips: float) -> Tensor:
            loss = policy_loss(ratio, advantages, mask, *clips)
            return loss + torch.where(mask, 0.3 * penalty(ratio + offsets.pop()), 0.0)

        patch.setattr(trainer, "k1", lambda new, ref, mask: torch.zeros_like(new))
        patch.setattr(trainer.PPOTrainer, "minibatch", remember)
        patch.setattr(losses, "policy_loss", with_penalty)

    return mutate


k1_in_the_loss = kl_in_the_loss(lambda d: d)
k2_in_the_loss = kl_in_the_loss(lambda d: 0.5 * d.square())
k3_in_the_loss = kl_in_the_loss(lambda d: torch.expm1(-d) + d)

OFTEN = {
    "score after the stop token": score_after_the_stop_token,
    "stop token outside the mask": stop_token_outside_the_mask,
    "sampling temperature unscored": sampling_temperature_unscored,
    "whitened rewards": whitened_rewards,
    "values after the stop token": values_after_the_stop_token,
    "bootstrap from the same state": bootstrap_from_the_same_state,
    "returns from whitened advantages": returns_from_whitened_advantages,
    "k3 in the reward": k3_in_the_reward,
}
SLOW = {
    "k2 in the loss": k2_in_the_loss,
    "score in the last column": score_in_the_last_column,
    "advantage sign": advantage_sign,
    "KL sign": kl_sign,
    "reference follows the policy": reference_follows_the_policy,
    "k2 in the reward": k2_in_the_reward,
    "k1 in the loss": k1_in_the_loss,
    "k3 in the loss": k3_in_the_loss,
    "score lost on stopped rows": score_lost_on_stopped_rows,
    "score at the first token": score_at_the_first_token,
    "score on every token": score_on_every_token,
}


def mutations() -> Iterator[object]:
    yield from (pytest.param(mutate, id=name) for name, mutate in OFTEN.items())
    yield from (pytest.param(mutate, id=name, marks=pytest.mark.slow) for name, mutate in SLOW.items())


@pytest.mark.parametrize("mutate", mutations())
def test_the_gate_rejects(mutate: Callable[[Patch], None], monkeypatch: Patch) -> None:
    mutate(monkeypatch)
    assert klopt() > LIMIT


def test_the_gate_passes_the_product() -> None:
    assert klopt() <= LIMIT


def test_the_gate_passes_a_temperature_that_is_scored_as_it_is_sampled() -> None:
    assert klopt(steps=80, temperature=0.7) <= LIMIT  # colder samples are fewer: it takes longer


@pytest.mark.slow
def test_the_gate_passes_gae_written_another_way(monkeypatch: Patch) -> None:
    unchanged_gae(monkeypatch)
    assert klopt() <= LIMIT
