"""From the terms of the config to the reward that PPO maximises."""

import sys
from dataclasses import dataclass
from functools import cached_property, partial

from reward import metrics
from reward.base import resolve
from reward.config import FixedNormalisation, RewardTerm
from reward.metric_config import checked_arguments
from reward.mixture import FunctionScores, RewardMixture, Source, Term
from reward.remote import RemoteScorer, Waiting
from reward.remote_scores import RemoteScores
from reward.scales import RunningScale, Scale
from stages.base import StageContext
from stages.models.config import TuningConfig
from stages.models.heads import ScoreModel
from stages.ppo.foreign_reward import Centring
from stages.ppo.reward_models import RewardModels, scorers_in


@dataclass(frozen=True)
class RewardServices:
    """What a stage lends to its reward."""

    waiting: Waiting = Waiting()
    centring: Centring = Centring()


@dataclass(frozen=True)
class RewardBuilder:
    """Makes the sources of all terms, once."""

    terms: list[RewardTerm]
    models: RewardModels
    waiting: Waiting = Waiting()

    @cached_property
    def mixture(self) -> RewardMixture:
        return RewardMixture([Term(t.label, t.weight, self._source(t), _scale(t)) for t in self.terms])

    @property
    def scorers(self) -> list[ScoreModel]:
        """The reward models in it that read the policy's own ids."""
        return [scorer for term in self.mixture.terms for scorer in scorers_in(term.source)]

    def value_model(self, tuning: TuningConfig) -> ScoreModel | None:
        """A trainable copy of this run's (first) reward model; None without one that reads the policy's ids."""
        return self.models.value_model(self.terms, tuning)

    def _source(self, term: RewardTerm) -> Source:
        if term.models:
            return self.models.source(term)
        if term.metric:
            arguments = checked_arguments(term.metric, term.reference, term.arguments)
            return FunctionScores(
                f"metric {term.metric}", getattr(metrics, term.metric), arguments, 1.0, term.reference
            )
        if term.remote:
            return RemoteScores(RemoteScorer(term.label, term.remote, term.limit, self.waiting))
        return FunctionScores(
            term.label,
            resolve(term.function),
            term.arguments,
            term.limit,
            call=term.call,
            concurrency=term.concurrency,
        )


def _scale(term: RewardTerm) -> Scale | RunningScale:
    if isinstance(term.normalise, FixedNormalisation):
        return Scale(term.normalise.mean, term.normalise.std, term.clip)
    if term.normalise == "none":
        return Scale(clip=term.clip)
    return RunningScale(term.normalise == "running_centred", term.clip)


def waiting_in(context: StageContext) -> Waiting:
    """What goes on in a stage while a scoring server is waited for: its pulse beats, and a signal is heard."""
    tell = partial(print, flush=True) if context.world.main else partial(print, flush=True, file=sys.stderr)
    return Waiting(context.pulse.beat, lambda: context.stop.signal is not None, tell)
