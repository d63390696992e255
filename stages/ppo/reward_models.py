"""The reward models that terms name, as sources: one or several, of this program or of others."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from reward.config import OWN, RewardTerm
from reward.learned import EnsembleScores, ModelScores
from reward.mixture import Source
from stages.base import InputError
from stages.models.classifier_facts import is_foreign
from stages.models.config import ModelConfig, TuningConfig
from stages.models.heads import ScoreModel
from stages.models.roles import Roles
from stages.ppo.foreign_reward import Centring, ForeignReward
from stages.ppo.learned_reward import LearnedReward
from stages.reward_model.members import folders_of


@dataclass(frozen=True)
class RewardModels:
    """Loads reward models for a policy."""

    own: Path | None
    """`final/` of this run's reward_model stage."""
    model: ModelConfig
    roles: Roles
    tokenizer: PreTrainedTokenizerBase
    """The policy's."""
    spread: Callable[[nn.Module], nn.Module]
    """May split the weights of a frozen model over the ranks."""
    centring: Centring = Centring()

    def source(self, term: RewardTerm) -> Source:
        """One reward model, or several combined; every folder counts with all the models that it holds."""
        sources = tuple(self._sources(term))
        return sources[0] if len(sources) == 1 else EnsembleScores(sources, term.combine, term.k)

    def value_model(self, terms: list[RewardTerm], tuning: TuningConfig) -> ScoreModel | None:
        """A trainable copy of this run's (first) reward model; None without one that reads the policy's ids."""
        learned = [self._learned(self._own_folder(), term) for term in terms if OWN in term.models]
        return learned[0].value_model(tuning) if learned and learned[0].reads(self.tokenizer) else None

    def _sources(self, term: RewardTerm) -> Iterator[Source]:
        for name in term.models:
            if name != OWN and is_foreign(name):
                yield ForeignReward(name, term, self.model, self.roles.trusts(name), self.centring).as_source()
                continue
            folder = self._own_folder() if name == OWN else Path(name)
            if self.roles.trusts(folder):
                self.roles.trust(*folders_of(folder))
            for final in folders_of(folder):
                yield self._learned(final, term).as_source(self.tokenizer, self.spread)

    def _learned(self, final: Path, term: RewardTerm) -> LearnedReward:
        return LearnedReward(final, term, self.roles, self.model.compute)

    def _own_folder(self) -> Path:
        if self.own is None:
            raise InputError(
                "STAGE03",
                "the reward has a model term but there is no reward_model stage",
                fix="enable reward_model, or use a function term",
            )
        return self.own


def scorers_in(source: Source) -> list[ScoreModel]:
    """The reward models of a source that read the policy's own ids."""
    members = source.members if isinstance(source, EnsembleScores) else (source,)
    return [member.model for member in members if isinstance(member, ModelScores)]
