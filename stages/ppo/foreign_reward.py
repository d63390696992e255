"""Reward models of others as PPO uses them: a logit on the texts as they read them, centred on demonstrations."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from reward.config import RewardTerm
from reward.learned import RereadScores
from stages.base import InputError
from stages.durable import write_json
from stages.models.classifiers import TextClassifier
from stages.models.config import ModelConfig
from stages.reward_model.quality import mean_and_std
from stages.world import ALONE, World

FILE = "reward_statistics.json"
SHOWN = 256
"""Demonstrations that are scored, at most."""


@dataclass(frozen=True)
class Centring:
    """Where the constants of reward models come from that bring none: measured once, then kept in a file."""

    file: Path | None = None
    demonstrations: Sequence[Mapping[str, Any]] = ()
    world: World = ALONE

    def constants(self, name: str, score: Callable[[Sequence[Mapping[str, Any]]], list[float]]) -> tuple[float, float]:
        """Mean and standard deviation (ddof 0) of a reward model on demonstrations; 0 and 1 where there are none.

        Those that an earlier attempt at the stage kept are taken as they are. All ranks call together.
        """
        return tuple(self.world.agreed(self._constants(name, score) if self.world.main else None))

    def _constants(self, name: str, score: Callable[..., list[float]]) -> tuple[float, float]:
        known = json.loads(self.file.read_text()) if self.file and self.file.is_file() else {}
        if name in known:
            return known[name]["mean"], known[name]["std"]
        if not self.demonstrations:
            print(f"reward model {name}: no demonstrations, so its scores are not centred", flush=True)
            return 0.0, 1.0
        every = -(-len(self.demonstrations) // SHOWN)
        shown = self.demonstrations[::every]
        mean, std = mean_and_std(score(shown))
        _require_spread(name, mean, std)
        print(f"reward model {name}: mean {mean:.3f}, std {std:.3f} on {len(shown)} demonstrations", flush=True)
        if self.file:
            write_json(self.file, known | {name: {"mean": mean, "std": std, "n": len(shown)}})
        return mean, std


def _require_spread(name: str, mean: float, std: float) -> None:
    if not math.isfinite(mean) or not std > 0:
        problem = f"reward model {name} gives demonstrations the mean {mean:g} and standard deviation {std:g}"
        raise InputError("RM08", problem, fix="choose another label_index or model: this one tells no texts apart")


@dataclass(frozen=True)
class ForeignReward:
    """A classifier of others as the source of a term, or a member of one."""

    path: str
    term: RewardTerm
    model: ModelConfig
    trust: bool
    centring: Centring

    @cached_property
    def classifier(self) -> TextClassifier:
        dtype, compute = self.model.dtype, self.model.compute
        return TextClassifier.load(self.path, self.term.label_index, dtype, compute, self.trust)

    def as_source(self) -> RereadScores:
        """Centred scores of decoded texts."""
        read = self.classifier
        mean, std = self.centring.constants(
            f"{self.path}:{read.label}", lambda rows: read([_ids(read, r) for r in rows])
        )
        scale = std if self.term.standardise else 1.0

        def score(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
            texts = [read.ids(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
            return [(raw - mean) / scale for raw in read(texts)]

        return RereadScores(score)


def _ids(read: TextClassifier, row: Mapping[str, Any]) -> list[int]:
    """A demonstration as a completion would be read; one that is `text` alone as it is."""
    if "messages" in row:
        return read.ids(row["messages"][:-1], row["messages"][-1]["content"])
    if "completion" in row:
        return read.ids(row["prompt"], row["completion"])
    return list(read.tokenizer(row["text"], truncation=True, max_length=read.limit).input_ids)
