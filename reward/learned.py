"""A reward model as a term of the reward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ModelTerm:
    """Scores of the sampled ids under a reward model that reads the policy's own ids."""

    name: str
    weight: float
    model: Any
    """A stages.models.heads.ScoreModel."""

    def __call__(self, texts: Any, read: Callable[[Any], Tensor]) -> Tensor:
        """Scores float32 [B]; `read` runs a score model over the current rollout."""
        return read(self.model)


@dataclass(frozen=True)
class RereadModelTerm:
    """Scores under a reward model with another tokenizer or template: it reads the decoded texts in its own way."""

    name: str
    weight: float
    score: Callable[[Sequence[Any], Sequence[str]], list[float]]
    """From prompts and completions to one score each."""

    def __call__(self, texts: Any, read: Callable[[Any], Tensor]) -> Tensor:
        """Scores float32 [B]."""
        return torch.tensor(self.score(texts.prompts, texts.completions), dtype=torch.float32)
