"""The score that PPO maximises: a weighted sum of terms, each kept for the log. Axis: B completions."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from reward.calls import Call, Calling, TrainerState, plain
from reward.contract import LIMIT, column_of, scores_of
from reward.scales import RunningScale, Scale


@dataclass(frozen=True)
class Texts:
    """A batch as reward functions see it; each column has one entry per completion."""

    prompts: Sequence[str]
    completions: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    ids: Sequence[Sequence[int]] | None = None
    """Sampled token ids of each completion, its stop token included."""
    state: TrainerState = TrainerState()
    """How far training is."""


Read = Callable[[Any], Tensor]
"""Runs a score model over the completions of the batch as ids: scores [B]."""


class Source(Protocol):
    """Where the scores of a term come from; implementations inherit from it."""

    abstains: ClassVar[bool] = False
    """Whether NaN among its scores says that the term does not apply to that completion; else NaN is a failure."""

    def __call__(self, texts: Texts, read: Read) -> Tensor:
        """Scores float32 [B]."""

    def said(self, name: str, texts: Texts, read: Read) -> dict[str, Tensor]:
        """The scores under the name of the term; a source may put more beside them, for the log alone."""
        return {name: self(texts, read)}


@dataclass(frozen=True)
class FunctionScores(Source):
    """A Python function of the decoded texts; what it returns is checked on every call."""

    abstains: ClassVar[bool] = True

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    limit: float = LIMIT
    """Largest magnitude of a score."""
    reference: str | None = None
    """Column that the function gets as `references`."""
    call: Call = "batch"
    concurrency: int = 8

    def __call__(self, texts: Texts, read: Read) -> Tensor:
        """Scores float32 [B], NaN for None. Raises RewardError REW01 to REW04, see reward.contract."""
        scores = self.scores(texts)
        return torch.tensor([math.nan if score is None else score for score in scores], dtype=torch.float32)

    def scores(self, texts: Texts) -> list[float | None]:
        """One score per completion, None where the function does not apply."""
        named = {**texts.columns, "trainer_state": texts.state}
        if texts.ids is not None:
            named["completion_ids"] = texts.ids
        if self.reference is not None:
            named["references"] = column_of(self.name, self.reference, texts.columns)
        function = plain(self.function, Calling(self.arguments, self.call, self.concurrency))
        return scores_of(self.name, function, texts.prompts, texts.completions, named, self.limit)


@dataclass(frozen=True)
class Term:
    """One part of the reward: `weight` times what `source` says, scaled."""

    name: str
    weight: float
    source: Source
    scale: Scale | RunningScale = Scale()

    def weighted(self, scores: Tensor) -> Tensor:
        """What the source's scores [B] add to the sum; 0 where the term does not apply."""
        added = self.weight * self.scale(scores)
        return torch.where(scores.isnan(), 0.0, added) if self.source.abstains else added


class RewardMixture:
    """`score = sum_i weight_i scale_i(source_i)`. Terms go by their names, numbered where several have one name."""

    def __init__(self, terms: Sequence[Term]):
        self.terms = tuple(terms)
        names = [term.name for term in terms]
        labels = [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names)]
        self._named = dict(zip(labels, self.terms, strict=True))
        self._running = {n: t.scale for n, t in self._named.items() if isinstance(t.scale, RunningScale)}

    def __call__(self, texts: Texts, read: Read) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores float32 [B] by the scales as they are, and what the sources said; `read(model)` runs a model."""
        said = self.said(texts, read)
        return self.total(said), said

    def said(self, texts: Texts, read: Read) -> dict[str, Tensor]:
        """What each source says, float32 [B]; NaN where a term does not apply."""
        found = [term.source.said(name, texts, read) for name, term in self._named.items()]
        return {name: scores.cpu() for each in found for name, scores in each.items()}

    def learn(self, said: Mapping[str, Tensor]) -> None:
        """Let running scales see the scores of a rollout, those of all ranks, once."""
        for name, scale in self._running.items():
            scale.learn(said[name])

    def weighted(self, said: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each term adds to the score, [B]."""
        return {name: term.weighted(said[name]) for name, term in self._named.items()}

    def total(self, said: Mapping[str, Tensor]) -> Tensor:
        """Scores float32 [B]."""
        return sum(self.weighted(said).values())

    @property
    def learns(self) -> bool:
        """Whether it has a state: the moments of running scales."""
        return bool(self._running)

    def state_dict(self) -> dict[str, dict[str, float]]:
        return {name: scale.moments.state_dict() for name, scale in self._running.items()}

    def load_state_dict(self, state: Mapping[str, dict[str, float]]) -> None:
        for name, scale in self._running.items():
            scale.moments.load_state_dict(state[name])
