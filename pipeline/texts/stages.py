"""What each stage makes of a row, by the functions that the stage itself uses."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pipeline.config import PipelineConfig
from stages.ppo.config import PPOConfig
from stages.ppo.prompts import require_short
from stages.render import Rendered, Renderer, Row
from stages.reward_model import pairs
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.pairs import SIDES, Pair
from stages.sft import targets
from stages.sft.config import SFTConfig

Kind = Literal["context", "target", "answer", "read", "cut"]
"""Of a token: given; trained on; scored as a whole, and where that score is read; beyond the limit."""
Fate = Literal["", "cut", "without target", "too long", "equal"]
"""What becomes of a row: nothing, it is cut, or it is left out for one of these reasons."""


@dataclass(frozen=True)
class Marked:
    """One sequence as the model gets it; `kinds` has one entry per id."""

    title: str
    ids: Sequence[int]
    kinds: Sequence[Kind]


class StageTexts(Protocol):
    """One stage's way with its rows; T is what it makes of one."""

    limit_key: str
    limit: int
    fates: tuple[Fate, ...]
    """What can become of a row, beside being taken as it is."""

    def render(self, row: Row) -> Any:
        """The row as ids."""

    def ids(self, item: Any) -> list[list[int]]:
        """Its sequences, whole."""

    def fate(self, item: Any) -> Fate:
        """What becomes of it."""

    def targets(self, item: Any) -> int | None:
        """Tokens that carry loss; None where loss is not per token."""

    def judge(self, items: Sequence[Any], path: Path, numbers: Sequence[int]) -> None:
        """Raises InputError as the stage would, for a file of these rows."""

    def marked(self, item: Any) -> list[Marked]:
        """Its sequences with the part of each token."""

    def facts(self, item: Any) -> list[str]:
        """Its sizes and what becomes of it, for people."""


class SFTTexts:
    """Demonstrations: the completion carries loss, what exceeds the limit is cut off."""

    limit_key = "sft.max_length"
    fates: tuple[Fate, ...] = ("cut", "without target")

    def __init__(self, config: SFTConfig, renderer: Renderer):
        self._config, self.render, self.limit = config, renderer.demonstration, config.max_length

    def ids(self, item: Rendered) -> list[list[int]]:
        return [item.ids]

    def fate(self, item: Rendered) -> Fate:
        if not targets.has_target(item, self._config):
            return "without target"
        return "cut" if len(item.ids) > self.limit else ""

    def targets(self, item: Rendered) -> int:
        return sum(self._loss(item)) if targets.has_target(item, self._config) else 0

    def judge(self, items: Sequence[Rendered], path: Path, numbers: Sequence[int]) -> None:
        targets.trainable(items, self._config, path, numbers)

    def marked(self, item: Rendered) -> list[Marked]:
        kinds: list[Kind] = ["target" if loss else "context" for loss in self._loss(item)]
        return [Marked("", item.ids, kinds + ["cut"] * (len(item.ids) - len(kinds)))]

    def facts(self, item: Rendered) -> list[str]:
        beyond = len(item.ids) - self.limit
        told = {
            "without target": ["left out: the prompt fills all that is seen"],
            "cut": [f"cut: {beyond} tokens beyond {self.limit_key} {self.limit} are not seen"],
        }
        return [f"{len(item.ids)} tokens", f"{self.targets(item)} with loss", *told.get(self.fate(item), [])]

    def _loss(self, item: Rendered) -> list[bool]:
        """Which of the tokens within the limit are predicted and scored; nothing predicts the first."""
        labels = targets.columns(item, self._config)["labels"]
        return [position > 0 and label != -100 for position, label in enumerate(labels)]


class RewardModelTexts:
    """Preferences: both sides are read at their last token; a pair that exceeds the limit is dropped."""

    limit_key = "reward_model.max_length"
    fates: tuple[Fate, ...] = ("too long", "equal")

    def __init__(self, config: RewardModelConfig, renderer: Renderer):
        self._config, self._renderer, self.limit = config, renderer, config.max_length

    def render(self, row: Row) -> Pair:
        return pairs.render_pair(self._renderer, row)

    def ids(self, item: Pair) -> list[list[int]]:
        return [item.chosen.ids, item.rejected.ids]

    def fate(self, item: Pair) -> Fate:
        if item.equal:
            return "equal"
        return "too long" if item.longest > self.limit else ""

    def targets(self, item: Pair) -> None:
        return None

    def judge(self, items: Sequence[Pair], path: Path, numbers: Sequence[int]) -> None:
        pairs.trainable(items, self._config, path, numbers)

    def marked(self, item: Pair) -> list[Marked]:
        return [_scored(side, getattr(item, side)) for side in SIDES]

    def facts(self, item: Pair) -> list[str]:
        told = {
            "equal": ["left out: both sides are the same tokens"],
            "too long": [f"left out: longer than {self.limit_key} {self.limit}"],
        }
        margin = [] if item.margin is None else [f"margin {item.margin:g}"]
        sizes = " and ".join(str(len(ids)) for ids in self.ids(item))
        return [f"{sizes} tokens", *margin, *told.get(self.fate(item), [])]


def _scored(side: str, row: Rendered) -> Marked:
    answer: list[Kind] = ["answer"] * (len(row.completion_ids) - 1)
    return Marked(side, row.ids, ["context"] * len(row.prompt_ids) + answer + ["read"])


class PPOTexts:
    """Prompts, sent whole; one that exceeds the limit stops the run."""

    limit_key = "ppo.max_prompt_tokens"
    fates: tuple[Fate, ...] = ()

    def __init__(self, config: PPOConfig, renderer: Renderer):
        self._config, self._renderer, self.limit = config, renderer, config.max_prompt_tokens

    def render(self, row: Row) -> list[int]:
        return self._renderer.prompt(row["prompt"])

    def ids(self, item: list[int]) -> list[list[int]]:
        return [item]

    def fate(self, item: list[int]) -> Fate:
        return ""

    def targets(self, item: list[int]) -> None:
        return None

    def judge(self, items: Sequence[list[int]], path: Path, numbers: Sequence[int]) -> None:
        require_short(items, self._config, path, numbers)

    def marked(self, item: list[int]) -> list[Marked]:
        return [Marked("", item, ["context"] * len(item))]

    def facts(self, item: list[int]) -> list[str]:
        return [f"{len(item)} tokens", f"at most {self._config.max_new_tokens} are sampled after them"]


ROLES = {"sft": "demonstrations", "reward_model": "preferences", "ppo": "prompts"}
"""The data that each stage reads."""


def texts_of(stage: str, config: PipelineConfig, renderer: Renderer) -> StageTexts:
    """The way of a stage with its rows."""
    if stage == "sft":
        return SFTTexts(config.sft, renderer)
    if stage == "reward_model":
        return RewardModelTexts(config.reward_model, renderer)
    return PPOTexts(config.ppo, renderer)


def model_path(stage: str, config: PipelineConfig) -> str:
    """The model whose tokenizer a stage uses; later stages inherit that of SFT, which is the base's."""
    return (stage == "reward_model" and config.reward_model.path) or config.model.path
