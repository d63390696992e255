"""The PPO iteration: sample, evaluate, optimise. Axes: B batch, T completion tokens.

Formulas and their sources are in advantages.py, losses.py and kl.py; docs/ppo.md says why each choice was made.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from reward.calls import TrainerState
from reward.mixture import RewardMixture, Texts
from stages.engine import Engine
from stages.generators import seed_generators
from stages.models.heads import PolicyModel
from stages.models.trunk import NoTrunk
from stages.ppo import losses, statistics
from stages.ppo.advantages import gae, token_rewards, whiten
from stages.ppo.config import PPOConfig
from stages.ppo.ema import EMA
from stages.ppo.experience import Experience
from stages.ppo.health import require_finite
from stages.ppo.kl import KLController, k1
from stages.ppo.metrics import Metrics, Stopwatch, rollout_metrics
from stages.ppo.minibatches import minibatches
from stages.ppo.passes import Passes, recomputing
from stages.ppo.prompts import PromptBatch
from stages.ppo.ptx import PretrainingMix
from stages.ppo.scores import ScoreRule
from stages.ppo.scoring import Scored, require_sum, score_together, term_metrics
from stages.ppo.text_metrics import text_metrics
from stages.rollout import Rollout, Sampler
from stages.world import ALONE, World


@dataclass(frozen=True)
class Step:
    """What one PPO iteration leaves for the log."""

    experience: Experience
    texts: Texts
    terms: dict[str, Tensor]
    """What the sources of the reward said, by name of the term, [B]; NaN where it does not apply."""
    metrics: Metrics


@dataclass
class PPOTrainer:
    """PPO with a frozen reference, a per-token KL penalty and a separate value model (arXiv 1909.08593, 2203.02155).

    Everything is built outside and passed in; the trainer's own state is the number of finished iterations.
    """

    config: PPOConfig
    policy: Engine
    value: Engine
    reference: PolicyModel
    reward: RewardMixture
    score_rule: ScoreRule
    kl: KLController
    sampler: Sampler
    decode: Callable[[Tensor, Tensor], list[str]]
    trunk: NoTrunk
    seed: int
    ptx: PretrainingMix | None = None
    ema: EMA | None = None
    enter: Callable[..., None] = lambda phase, step: None
    """Told each phase and its step as it begins."""
    world: World = ALONE
    """Each rank samples, evaluates and differentiates its rows; everything else is computed from all rows by all."""
    finished: int = 0

    def step(self, batch: PromptBatch) -> Step:
        """One iteration on `rollout_batch_size` prompts: rollout, scoring, ppo_epochs over the minibatches."""
        clock = Stopwatch(partial(self.enter, step=self.finished + 1))
        clock.begin("rollout")
        seed_generators(self.seed, self.finished)
        rows, width = batch.rows(self.world.share(len(batch.ids))), max(map(len, batch.ids))
        with self.policy.sampling():
            own = self.sampler(self.policy.module.lm, rows.ids, rows.episodes, width)
        clock.begin("scoring")
        experience, scored = self.evaluate(own, batch)
        clock.begin("update")
        metrics = rollout_metrics(experience, self.kl.coef) | term_metrics(scored)
        metrics |= text_metrics(experience, scored.completions)
        with recomputing((self.policy.module, self.value.module), self.config.gradient_checkpointing):
            metrics |= self.optimise(experience, batch)
        self.kl.update(metrics["objective/kl"], len(experience))
        self.finished += 1
        metrics |= clock.metrics()
        metrics["rollout/tokens_per_second"] = metrics["rollout/tokens"] / metrics["time/rollout"]
        return Step(experience, Texts(batch.texts, scored.completions, batch.columns), scored.terms, metrics)

    @torch.no_grad()
    def evaluate(self, own: Rollout, batch: PromptBatch) -> tuple[Experience, Scored]:
        """Log-probabilities, values, scores, rewards and advantages of a rollout, all constant from here on.

        `own` has the rows of this rank, `batch` and what is returned those of all.
        """
        passes = self._passes
        ref_logprobs = passes.record(own, lambda r: self.reference(r.ids, r.attention_mask, r.mask, False).logprobs)
        both = passes.replay(own, lambda r: torch.stack(self.policy.module(r.ids, r.attention_mask, r.mask), 1))
        values = passes.replay(own, lambda r: self.value.module.values(r.ids, r.attention_mask, r.mask.shape[1]))
        sampled = {name: self.world.gather(column) for name, column in vars(own).items()}
        logprobs, entropy = self.world.gather(both).unbind(1)
        ref_logprobs, values = self.world.gather(ref_logprobs), self.world.gather(values)
        forward = {"logprobs": logprobs, "ref_logprobs": ref_logprobs, "values": values}
        require_finite(forward, sampled, self.finished + 1, batch.episodes)
        scored = self._score(own, batch, self.score_rule.counted(sampled["stopped"]))
        require_finite({"score": scored.scores}, sampled | forward, self.finished + 1, batch.episodes)
        require_sum(scored)

        mask, stopped = sampled["mask"], sampled["stopped"]
        scores = self.score_rule(scored.scores.to(mask.device), stopped)
        rewards = token_rewards(scores, k1(logprobs, ref_logprobs, mask), mask, self.kl.coef)
        advantages, returns = gae(rewards, values, mask, self.config.gamma, self.config.lam)
        if self.config.whiten_advantages:
            advantages = whiten(advantages, mask)
        derived = {"scores": scores, "rewards": rewards, "advantages": advantages, "returns": returns}
        require_finite(derived, sampled | forward, self.finished + 1, batch.episodes)
        return Experience(**sampled, **forward, entropy=entropy, **derived), scored

    def _score(self, own: Rollout, batch: PromptBatch, counted: Tensor) -> Scored:
        """What the reward says of all rows; each rank asks it about its own."""
        rows, passes = batch.rows(self.world.share(len(batch.ids))), self._passes
        state = TrainerState(self.finished, self.config.steps)
        written = self.decode(own.completions, own.mask)
        return score_together(
            self.reward,
            Texts(rows.texts, written, rows.columns, own.answers(), state),
            lambda model: passes.replay(own, lambda r: model.scores(r.ids, r.attention_mask)),
            self.world,
            counted,
        )

    def optimise(self, experience: Experience, batch: PromptBatch) -> Metrics:
        """ppo_epochs passes over the rollout in minibatches of whole completions; each row once per pass."""
        totals: list[Metrics] = []
        first = self.finished * self.config.ppo_epochs
        for epoch in range(first, first + self.config.ppo_epochs):
            for rows in minibatches(self.seed, epoch, len(experience), self.config.minibatch_size):
                stats = self.minibatch(experience, rows)
                self._require_finite(stats, experience, rows, batch)
                totals.append(stats)
                if self.config.target_kl and stats["policy/approx_kl"] > 1.5 * self.config.target_kl:
                    self._discard()
                    return statistics.summary(totals)
                norms = self._clip_engines()
                self._require_finite(norms, experience, rows, batch)
                totals[-1] |= norms | self._step_engines()
        return statistics.summary(totals)

    def _require_finite(self, found: Metrics, experience: Experience, rows: Tensor, batch: PromptBatch) -> None:
        tensors = {name: torch.tensor(value) for name, value in found.items()}
        known = {f.name: getattr(experience[rows], f.name) for f in fields(Experience)}
        require_finite(tensors, known, self.finished + 1, [batch.episodes[i] for i in rows])

    def minibatch(self, experience: Experience, rows: Tensor) -> Metrics:
        """Gradients of one optimizer step: token-mean over the whole minibatch, whatever its microbatches."""
        config, shares = self.config, self.world.share(len(experience))
        tokens = experience.mask[rows].sum()
        own = rows[(rows >= shares.start) & (rows < shares.stop)]
        parts = list(self._passes.microbatches(experience, own))
        mixed = self.ptx is not None and self._policy_learns
        stats: dict[str, Tensor] = {}
        for number, (part, columns, e) in enumerate(parts, 1):
            last = number == len(parts)
            with self.trunk.replaying(part - shares.start, columns):
                new = self.policy.module(e.ids, e.attention_mask, e.mask, config.entropy_coef > 0)
                ratio = losses.log_ratio(new.logprobs, e.logprobs, e.mask)
                policy = losses.policy_loss(ratio, e.advantages, e.mask, config.clip_range, config.dual_clip)
                if self._policy_learns:  # backward here: the activations of one network at a time
                    loss = (policy - config.entropy_coef * new.entropy).sum() / tokens
                    self.policy.backward(loss, last and not mixed)
                values = self.value.module.values(e.ids, e.attention_mask, e.mask.shape[1])
                value = losses.value_loss(values, e.values, e.returns, e.mask, config.value_clip_range)
                self.value.backward(config.vf_coef * value.sum() / tokens, last)
            statistics.add(
                stats,
                {
                    "policy/loss": policy,
                    "policy/approx_kl": losses.approx_kl(ratio),
                    "policy/clip_fraction": losses.clipped(ratio, config.clip_range),
                    "value/loss": value,
                },
                tokens,
            )
            statistics.add_ratio_error(stats, ratio)
        if mixed:
            loss = self.ptx.loss(self.policy.module.lm, self.world)
            self.policy.backward(self.ptx.coef * loss)
            stats["policy/ptx_loss"] = loss.detach()
        return statistics.over_ranks(stats, self.world)

    def averaged(self) -> AbstractContextManager:
        """Inside, the policy computes with its averaged weights, if it keeps an average."""
        return self.ema.applied() if self.ema else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """All that changes from iteration to iteration."""
        return {"finished": self.finished} | {name: part.state_dict() for name, part in self._stateful().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._discard()
        self.finished = state["finished"]
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])

    def _stateful(self) -> dict[str, Any]:
        parts = {
            "policy": self.policy,
            "value": self.value,
            "kl": self.kl,
            "moments": self.score_rule.moments,
            "reward": self.reward if self.reward.learns else None,
            "ptx": self.ptx,
            "ema": self.ema,
        }
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def _policy_learns(self) -> bool:
        return self.finished >= self.config.critic_warmup_steps

    @property
    def _learning(self) -> dict[str, Engine]:
        return {"value": self.value} | ({"policy": self.policy} if self._policy_learns else {})

    def _clip_engines(self) -> Metrics:
        """Gradient norms of those that will learn from this step."""
        norms = {f"{role}/grad_norm": engine.clip() for role, engine in self._learning.items()}
        return {name: norm for name, norm in norms.items() if norm is not None}

    def _step_engines(self) -> Metrics:
        rates = {f"{role}/learning_rate": engine.learning_rate() for role, engine in self._learning.items()}
        scales = {f"{role}/loss_scale": engine.loss_scale for role, engine in self._learning.items()}
        for engine in self._learning.values():
            engine.step()
        if self.ema is not None and self._policy_learns:
            self.ema.update()
        return rates | {name: scale.value for name, scale in scales.items() if scale is not None}

    def _discard(self) -> None:
        self.policy.discard()
        self.value.discard()

    @property
    def _passes(self) -> Passes:
        return Passes(self.trunk, self.config.microbatch_size)
