"""A trained reward model that is asked about texts, with the scores that a `model` term of PPO gives them."""

import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from reward.config import RewardTerm
from reward.mixture import RewardMixture, Texts
from stages.base import InputError
from stages.models.config import ModelConfig
from stages.models.heads import ScoreModel
from stages.models.load import load_tokenizer, source_of
from stages.models.roles import Roles
from stages.models.trunk import unwrapped
from stages.ppo.reward_models import RewardModels
from stages.ppo.rewards import RewardBuilder
from stages.quiet import quiet_libraries
from stages.render import Renderer
from stages.reward_model.members import folders_of
from stages.reward_model.statistics import raw_scores

BATCH = 32  # texts per forward pass; those of similar length share one


class TextScorer:
    """Renders prompts and completions as the reward model was trained on them, stop token included, and scores them."""

    def __init__(self, mixture: RewardMixture, scorers: Sequence[ScoreModel], tokenizer: PreTrainedTokenizerBase):
        self._mixture, self._scorers, self._tokenizer = mixture, scorers, tokenizer
        self._renderer = Renderer(tokenizer)

    @classmethod
    def load(cls, term: RewardTerm, model: ModelConfig | None, trust_remote_code: bool = False) -> "TextScorer":
        """The reward model, or ensemble, in the `final/` that a term names, computed as `model` says or in float32.

        Raises InputError PEFT01, PEFT02, RM01, RM04, RM05 and STAGE01 as a `model` term does.
        """
        quiet_libraries()
        (final,) = map(Path, term.models)
        source = source_of(final)
        settings = {"path": source.base, "trust_remote_code": trust_remote_code}
        model = model.model_copy(update=settings) if model else ModelConfig(**settings)
        roles = Roles(model)
        roles.trust(*folders_of(final))
        tokenizer = load_tokenizer(source, roles.trusts(source.folder))
        builder = RewardBuilder([term], RewardModels(None, model, roles, tokenizer, _whole))
        return cls(builder.mixture, builder.scorers, tokenizer)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        """Centred scores.

        Raises InputError LEN01 (a text that the model has no positions for), TMPL01, TMPL04, TMPL05.
        """
        ids = [self._renderer.pair(p, c).ids for p, c in zip(prompts, completions, strict=True)]
        for number, text in enumerate(ids):
            if len(text) > self.limit:
                problem = f"sample {number} has {len(text)} tokens, and the reward model has {self.limit} positions"
                raise InputError("LEN01", problem, fix="send shorter texts")

        def read(model: ScoreModel) -> Tensor:
            return torch.tensor(raw_scores(model, ids, self._tokenizer.pad_token_id, BATCH))

        scores, _ = self._mixture(Texts(prompts, completions, {}), read)
        return scores.tolist()

    @cached_property
    def limit(self) -> int:
        """Tokens of prompt and completion together."""
        configs = [unwrapped(scorer.classifier).config.get_text_config() for scorer in self._scorers]
        return min((getattr(c, "max_position_embeddings", None) or sys.maxsize for c in configs), default=sys.maxsize)


def _whole(module: nn.Module) -> nn.Module:
    """One process holds all weights."""
    return module
