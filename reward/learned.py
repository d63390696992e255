"""Scores under a reward model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reward.mixture import Read, Source, Texts


@dataclass(frozen=True)
class ModelScores(Source):
    """Scores of the sampled ids under a reward model that reads the policy's own ids."""

    model: Any
    """A stages.models.heads.ScoreModel."""

    def __call__(self, texts: Texts, read: Read) -> Tensor:
        """Scores float32 [B]; `read` runs a score model over the current rollout."""
        return read(self.model)


@dataclass(frozen=True)
class RereadScores(Source):
    """Scores under a reward model with another tokenizer or template: it reads the decoded texts in its own way."""

    score: Callable[[Sequence[Any], Sequence[str]], list[float]]
    """From prompts and completions to one score each."""

    def __call__(self, texts: Texts, read: Read) -> Tensor:
        """Scores float32 [B]."""
        return torch.tensor(self.score(texts.prompts, texts.completions), dtype=torch.float32)
