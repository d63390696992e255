"""From the terms of the config to the reward that PPO maximises."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from reward import metrics
from reward.base import resolve
from reward.config import OWN, FixedNormalisation, RewardTerm
from reward.learned import EnsembleScores, ModelScores
from reward.metric_config import checked_arguments
from reward.mixture import FunctionScores, RewardMixture, Source, Term
from reward.remote import RemoteScorer, Waiting
from reward.remote_scores import RemoteScores
from reward.scales import RunningScale, Scale
from stages.base import InputError, StageContext
from stages.models.config import TuningConfig
from stages.models.heads import ScoreModel
from stages.models.roles import Roles
from stages.ppo.learned_reward import LearnedReward
from stages.reward_model.members import folders_of


@dataclass(frozen=True)
class RewardBuilder:
    """Makes the sources of all terms, once."""

    terms: list[RewardTerm]
    own: Path | None
    """`final/` of this run's reward_model stage."""
    roles: Roles
    compute: str
    tokenizer: PreTrainedTokenizerBase
    """The policy's."""
    spread: Callable[[nn.Module], nn.Module]
    """May split the weights of a frozen model over the ranks."""
    waiting: Waiting = Waiting()

    @cached_property
    def mixture(self) -> RewardMixture:
        return RewardMixture([Term(t.label, t.weight, self._source(t), _scale(t)) for t in self.terms])

    @property
    def scorers(self) -> list[ScoreModel]:
        """The reward models in it that read the policy's own ids."""
        sources = [term.source for term in self.mixture.terms]
        each = [one for source in sources for one in getattr(source, "members", (source,))]
        return [source.model for source in each if isinstance(source, ModelScores)]

    def value_model(self, tuning: TuningConfig) -> ScoreModel | None:
        """A trainable copy of this run's reward model; None without one that reads the policy's ids."""
        learned = [self._learned(self._own, term) for term in self.terms if OWN in term.models]
        return learned[0].value_model(tuning) if learned and learned[0].reads(self.tokenizer) else None

    def _source(self, term: RewardTerm) -> Source:
        if term.models:
            return self._of_models(term)
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

    def _of_models(self, term: RewardTerm) -> Source:
        """One reward model, or several combined; every folder counts with all that it holds."""
        named = [self._own if name == OWN else Path(name) for name in term.models]
        finals = [final for folder in named for final in folders_of(folder)]
        if self.own is not None and self.roles.trusts(self.own):
            self.roles.trust(*folders_of(self.own))
        sources = [self._learned(final, term).as_source(self.tokenizer, self.spread) for final in finals]
        return sources[0] if len(sources) == 1 else EnsembleScores(tuple(sources), term.combine, term.k)

    def _learned(self, final: Path, term: RewardTerm) -> LearnedReward:
        return LearnedReward(final, term, self.roles, self.compute)

    @property
    def _own(self) -> Path:
        if self.own is None:
            raise InputError(
                "STAGE03",
                "the reward has a model term but there is no reward_model stage",
                fix="enable reward_model, or use a function term",
            )
        return self.own


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
