"""How good a policy is on fixed held-out prompts. Axis: B completions."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from reward.base import RewardError
from reward.calls import TrainerState
from reward.mixture import RewardMixture, Texts
from stages.generators import seed_generators
from stages.models.heads import PolicyModel
from stages.models.trunk import NoTrunk
from stages.ppo.kl import k1
from stages.ppo.passes import Passes
from stages.ppo.prompts import PromptBatch
from stages.ppo.scoring import applied, term_rows
from stages.reward_model.quality import wilson
from stages.rollout import Sampler
from stages.world import ALONE, World

MICROBATCH = 16  # rows per forward pass; rows of similar length share one


@dataclass(frozen=True)
class Estimate:
    """A mean over n completions with its standard error."""

    value: float
    standard_error: float
    n: int

    @staticmethod
    def of(values: Tensor) -> "Estimate":
        values = values.double()
        error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
        return Estimate(float(values.mean()), error, len(values))


@dataclass(frozen=True)
class Completions:
    """Held-out completions of one policy; tensors are [B]."""

    texts: Texts
    terms: dict[str, Tensor]
    """What the sources of the reward said; NaN where a term does not apply."""
    scores: Tensor
    kl: Tensor
    lengths: Tensor
    stopped: Tensor

    def rows(self) -> list[dict[str, Any]]:
        """One plain row per completion."""
        columns = zip(
            self.texts.prompts,
            self.texts.completions,
            self.scores,
            term_rows(self.terms),
            self.kl,
            self.lengths,
            self.stopped,
            strict=True,
        )
        return [
            {
                "prompt": p,
                "completion": c,
                "score": float(s),
                "terms": terms,
                "kl": float(k),
                "length": int(n),
                "stopped": bool(e),
            }
            for p, c, s, terms, k, n, e in columns
        ]

    def summary(self) -> dict[str, Estimate]:
        """score, kl (nats per completion), length (tokens), stopped_fraction, and each term where it applies."""
        terms = {f"term/{name}": applied(values) for name, values in self.terms.items()}
        return {
            "score": Estimate.of(self.scores),
            "kl": Estimate.of(self.kl),
            "length": Estimate.of(self.lengths),
            "stopped_fraction": Estimate.of(self.stopped),
            **{name: Estimate.of(values) for name, values in terms.items() if len(values)},
        }


@dataclass(frozen=True)
class Evaluator:
    """Completes, scores and compares with the reference; the random numbers are the same for every policy."""

    reference: PolicyModel
    reward: RewardMixture
    sampler: Sampler
    decode: Callable[[Tensor, Tensor], list[str]]
    trunk: NoTrunk
    batch_size: int
    world: World = ALONE
    state: TrainerState = TrainerState()
    """What reward functions are told of training."""

    @torch.no_grad()
    def __call__(self, policy: PolicyModel, batch: PromptBatch) -> Completions:
        """Completions of every prompt in `batch`. Scores are the reward's own, before PPO's rules for them."""
        seed_generators(self.sampler.seed, 0)
        parts = []
        for start in range(0, len(batch.ids), self.batch_size):
            parts.append(self._part(policy, batch.rows(slice(start, start + self.batch_size))))
        texts = Texts(
            [p for part in parts for p in part.texts.prompts],
            [c for part in parts for c in part.texts.completions],
            batch.columns,
            [ids for part in parts for ids in part.texts.ids],
            self.state,
        )
        terms = {name: torch.cat([part.terms[name] for part in parts]) for name in parts[0].terms}
        tensors = (torch.cat([getattr(p, name) for p in parts]) for name in ("scores", "kl", "lengths", "stopped"))
        return Completions(texts, terms, *tensors)

    def rescored(self, completions: Completions) -> Completions:
        """The same completions under the reward's scales as they are now."""
        return replace(completions, scores=self.reward.total(completions.terms))

    def _part(self, policy: PolicyModel, batch: PromptBatch) -> Completions:
        rows, width = self._own(batch), max(map(len, batch.ids))
        r = self.sampler(policy.lm, rows.ids, rows.episodes, width)
        passes = Passes(self.trunk, MICROBATCH)
        ref_logprobs = passes.record(r, lambda p: self.reference(p.ids, p.attention_mask, p.mask, False).logprobs)
        logprobs = passes.replay(r, lambda p: policy(p.ids, p.attention_mask, p.mask, False).logprobs)
        written = self.decode(r.completions, r.mask)
        with self.world.together(RewardError):
            scores, said = self.reward(
                Texts(rows.texts, written, rows.columns, r.answers(), self.state),
                lambda model: passes.replay(r, lambda p: model.scores(p.ids, p.attention_mask)),
            )
        kl = k1(logprobs, ref_logprobs, r.mask).sum(1)
        told = self.world.gather_objects((written, r.answers()))
        completions, ids = ([item for part in told for item in part[i]][: len(batch.ids)] for i in range(2))
        terms = {name: self._whole(values, batch) for name, values in said.items()}
        tensors = (self._whole(t, batch) for t in (scores, kl, r.mask.sum(1).float(), r.stopped.float()))
        return Completions(Texts(batch.texts, completions, batch.columns, ids, self.state), terms, *tensors)

    def _whole(self, own: Tensor, batch: PromptBatch) -> Tensor:
        """The values [B] of all ranks."""
        return self.world.gather(own)[: len(batch.ids)].cpu()

    def _own(self, batch: PromptBatch) -> PromptBatch:
        """The rows of this rank; the last row is repeated until all ranks have as many."""
        missing = -len(batch.ids) % self.world.size
        rows = [*range(len(batch.ids)), *[len(batch.ids) - 1] * missing]
        return batch.chosen(rows[self.world.share(len(rows))])


def win_rate(ours: Completions, theirs: Completions) -> dict[str, float]:
    """How often our completion scores higher than theirs for the same prompt; ties are half. With its interval."""
    wins = (ours.scores > theirs.scores).double() + 0.5 * (ours.scores == theirs.scores).double()
    interval = wilson(float(wins.sum()), len(wins))
    return {"win_rate": interval.value, "win_rate_low": interval.low, "win_rate_high": interval.high}


def distinct_2(completions: Sequence[str]) -> float:
    """Distinct word pairs over all word pairs of all completions (arXiv 1510.03055); 1 when nothing repeats."""
    pairs = Counter(pair for text in completions for pair in pairwise(text.split()))
    return len(pairs) / max(1, pairs.total())
