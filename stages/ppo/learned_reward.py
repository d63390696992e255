"""Reward models as PPO uses them: loaded, probed, centred, and read in the policy's ids or in their own."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from reward.config import RewardTerm
from reward.learned import ModelScores, RereadScores
from stages.models.config import TuningConfig
from stages.models.heads import ScoreModel
from stages.models.load import ModelSource, load_tokenizer, same_reading, source_of
from stages.models.precision import device
from stages.models.roles import Roles
from stages.render import Renderer
from stages.reward_model.statistics import RewardStatistics, raw_scores, verify_probes

REREAD_BATCH = 32


@dataclass(frozen=True)
class LearnedReward:
    """The reward model in a `final/` folder, as the source of a term."""

    final: Path
    term: RewardTerm
    roles: Roles
    compute: str

    @cached_property
    def source(self) -> ModelSource:
        return source_of(self.final)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.source, self.roles.trusts(self.source.folder))

    @cached_property
    def statistics(self) -> RewardStatistics:
        return RewardStatistics.load(self.final)

    def reads(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether this reward model was trained on what that tokenizer and its template make of a text."""
        return same_reading(self.tokenizer, tokenizer)

    @cached_property
    def scorer(self) -> ScoreModel:
        """Frozen and centred. Raises InputError RM05 when it does not score its probes as it did when saved."""
        raw = ScoreModel(self.roles.reward_model(self.source).to(device()), compute=self.compute).eval()
        verify_probes(raw, self.statistics, self.final, self.tokenizer.pad_token_id)
        return self._centred(raw.classifier).requires_grad_(False)

    def value_model(self, tuning: TuningConfig) -> ScoreModel:
        """A trainable copy: it starts where the reward model is, in its units."""
        return self._centred(self.roles.value_from_reward_model(self.source, tuning).to(device()))

    def _centred(self, classifier: nn.Module) -> ScoreModel:
        std = self.statistics.std if self.term.standardise else 1.0
        return ScoreModel(classifier, self.statistics.mean, std, self.compute).eval()

    def as_source(
        self, tokenizer: PreTrainedTokenizerBase, spread: Callable[[nn.Module], nn.Module] = lambda module: module
    ) -> ModelScores | RereadScores:
        """The scores for a policy with this tokenizer; said once when texts have to be decoded and encoded again.

        `spread` may split the weights of a model that reads the policy's ids, in step with all ranks.
        """
        if self.reads(tokenizer):
            return ModelScores(spread(self.scorer))
        print(
            f"reward model {self.final} has a tokenizer or template of its own: "
            "completions are decoded and rendered again for it",
            flush=True,
        )
        render = Renderer(self.tokenizer)

        def score(prompts, completions) -> list[float]:
            texts = [render.pair(p, c).ids for p, c in zip(prompts, completions, strict=True)]
            return raw_scores(self.scorer, texts, self.tokenizer.pad_token_id, REREAD_BATCH)

        return RereadScores(score)
