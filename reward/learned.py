"""Scores under a reward model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reward.config import Combine
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


@dataclass(frozen=True)
class EnsembleScores(Source):
    """Several reward models as one: what they agree on counts, and how far they disagree is kept beside it."""

    members: tuple[Source, ...]
    combine: Combine = "mean"
    k: float = 1.0

    def __call__(self, texts: Texts, read: Read) -> Tensor:
        """Scores float32 [B]."""
        return combined(self._each(texts, read), self.combine, self.k)

    def said(self, name: str, texts: Texts, read: Read) -> dict[str, Tensor]:
        """The scores, and as `<name>_disagreement` their standard deviation over the members (ddof 0), each [B]."""
        each = self._each(texts, read)
        return {name: combined(each, self.combine, self.k), f"{name}_disagreement": each.std(0, correction=0)}

    def _each(self, texts: Texts, read: Read) -> Tensor:
        return torch.stack([member(texts, read).float().cpu() for member in self.members])


def combined(each: Tensor, combine: Combine, k: float = 1.0) -> Tensor:
    """Scores [B] of M reward models [M, B]: mean, min (worst case), or mean - k std (ddof 0).

    The two cautious ones against over-optimisation are those of Coste et al. (arXiv 2310.02743, section 3), where the
    third subtracts a multiple of the variance; here it is of the standard deviation, which is in score units.
    """
    if combine == "min":
        return each.amin(0)
    mean = each.mean(0)
    return mean if combine == "mean" else mean - k * each.std(0, correction=0)
