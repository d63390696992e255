"""The score that PPO maximises: a weighted sum of terms, each kept for the log. Axis: B completions."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from reward.base import RewardFunction
from reward.contract import LIMIT, column_of, scores_of


@dataclass(frozen=True)
class Texts:
    """A batch as reward functions see it; each column has one entry per completion."""

    prompts: Sequence[str]
    completions: Sequence[str]
    columns: Mapping[str, Sequence[Any]]


Read = Callable[[Any], Tensor]
"""Runs a score model over the completions of the batch as ids: scores [B]."""


class Source(Protocol):
    """Where the scores of a term come from; implementations inherit from it."""

    abstains: ClassVar[bool] = False
    """Whether NaN among its scores says that the term does not apply to that completion; else NaN is a failure."""

    def __call__(self, texts: Texts, read: Read) -> Tensor:
        """Scores float32 [B]."""


@dataclass(frozen=True)
class FunctionScores(Source):
    """A Python function of the decoded texts; what it returns is checked on every call."""

    abstains: ClassVar[bool] = True

    name: str
    function: RewardFunction
    arguments: Mapping[str, Any]
    limit: float = LIMIT
    """Largest magnitude of a score."""
    reference: str | None = None
    """Column that the function gets as `references`."""

    def __call__(self, texts: Texts, read: Read) -> Tensor:
        """Scores float32 [B], NaN for None. Raises RewardError REW01 to REW04, see reward.contract."""
        named = {**texts.columns, **self.arguments}
        if self.reference is not None:
            named["references"] = column_of(self.name, self.reference, texts.columns)
        scores = scores_of(self.name, self.function, texts.prompts, texts.completions, named, self.limit)
        return torch.tensor([math.nan if score is None else score for score in scores], dtype=torch.float32)


@dataclass(frozen=True)
class Scale:
    """`(score - mean) / std`, clipped to +- clip."""

    mean: float = 0.0
    std: float = 1.0
    clip: float | None = None

    def __call__(self, scores: Tensor) -> Tensor:
        scores = (scores - self.mean) / self.std
        return scores if self.clip is None else scores.clamp(-self.clip, self.clip)


@dataclass(frozen=True)
class Term:
    """One part of the reward: `weight` times what `source` says, scaled."""

    name: str
    weight: float
    source: Source
    scale: Scale = Scale()

    def contribution(self, scores: Tensor) -> Tensor:
        """What the source's scores [B] add to the sum; 0 where the term does not apply."""
        added = self.weight * self.scale(scores)
        return torch.where(scores.isnan(), 0.0, added) if self.source.abstains else added


class RewardMixture:
    """`score = sum_i weight_i scale_i(source_i)`."""

    def __init__(self, terms: Sequence[Term]):
        self.terms = tuple(terms)

    def __call__(self, texts: Texts, read: Read) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores float32 [B], and what the sources said by name of the term. `read(model) -> [B]` runs a model."""
        scores = [term.source(texts, read).cpu() for term in self.terms]
        names = [term.name for term in self.terms]
        labels = [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names)]
        total = sum(term.contribution(score) for term, score in zip(self.terms, scores, strict=True))
        return total, dict(zip(labels, scores, strict=True))
