"""A reward model as a term of the reward."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ModelTerm:
    """Scores of the sampled ids under a reward model whose tokenizer is the policy's."""

    name: str
    weight: float
    model: Any
    """A stages.models.heads.ScoreModel."""

    def __call__(self, texts: Any, read: Callable[[Any], Tensor]) -> Tensor:
        """Scores float32 [B]; `read` runs a score model over the current rollout."""
        return read(self.model)
