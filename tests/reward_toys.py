"""A reward-model stage on pairs that a two-layer model separates within seconds."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.base import StageResult
from stages.models.config import ModelConfig
from stages.models.heads import ScoreModel
from stages.models.load import load_tokenizer, source_of
from stages.models.roles import Roles
from stages.render import Renderer
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.stage import run_reward_model
from stages.reward_model.statistics import raw_scores
from tests.toy_models import PAD, MemoryTracker, context, save_toy, write_rows

FULL = {"method": "full"}
LORA = {"method": "lora", "r": 4, "alpha": 8}
STARTS = ("the film", "a plot", "my seat", "this cast", "his song", "our trip")
GOOD, BAD = (
    (" was a joy", " made us glad", " won my heart", " is so good!"),
    (" was a bore", " made us sad", " lost me", " is so bad?"),
)
PAIRS = [{"prompt": p, "chosen": g, "rejected": b} for p in STARTS for g in GOOD for b in BAD]
random.Random(0).shuffle(PAIRS)
DEMONSTRATIONS = [{"prompt": p, "completion": c} for p in STARTS for c in (GOOD[0], BAD[1])]


class Stage:
    """A base model, preference files, and the stage on them."""

    def __init__(self, folder: Path, architecture: str = "llama", **model: Any):
        self.folder = folder
        self.base = save_toy(folder / "base", architecture)
        self.model = ModelConfig(path=str(self.base), **model)
        self.train = write_rows(folder / "train.jsonl", PAIRS[1::2])
        self.held_out = write_rows(folder / "eval.jsonl", PAIRS[::2])
        self.tracker = MemoryTracker()

    def run(
        self,
        demonstrations: list[dict] = DEMONSTRATIONS,
        held_out: bool = True,
        sft: Path | None = None,
        **changes: Any,
    ) -> StageResult:
        settings = {
            "learning_rate": 3e-3,
            "batch_size": 8,
            "microbatch_size": 8,
            "epochs": 4,
            "log_every": 1,
            "max_length": 64,
        }
        services = replace(context(self.folder / "run"), tracker=self.tracker)
        config = RewardModelConfig(**settings | changes)
        held_out = self.held_out if held_out else None
        return run_reward_model(config, self.model, self.train, held_out, sft, services, demonstrations)

    def report(self) -> dict[str, Any]:
        """What the stage wrote into report.json."""
        return json.loads((self.folder / "run" / "report.json").read_text())

    def scorer(self, final: Path) -> ScoreModel:
        return ScoreModel(Roles(self.model).reward_model(source_of(final)), compute=self.model.compute).eval()

    def ids(self, rows: list[dict], column: str) -> list[list[int]]:
        renderer = Renderer(load_tokenizer(source_of(self.base)))
        return [renderer.pair(row["prompt"], row[column]).ids for row in rows]

    def scores(self, final: Path, rows: list[dict], column: str, batch_size: int = 16) -> list[float]:
        return raw_scores(self.scorer(final), self.ids(rows, column), PAD, batch_size)
