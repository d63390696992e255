"""A stage on one and two ranks: every ZeRO stage with every method, in whole and resumed; other splits; other sizes.

Three launches make all of it, so that processes start and import once for many cases.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.distributed.ranked_stages import METHODS, train
from tests.toy_models import save_toy

STEPS, SAVED = 4, 2
"""The third step is the last batch of an epoch, of three rows, of which two ranks cannot take as many each."""
ZERO = {0: {"zero_stage": 0}, 1: {"zero_stage": 1}, 2: {"zero_stage": 2}, 3: {"file": "zero3.json"}}
"""Small weights would stay whole under ZeRO 3 by default, so a file says otherwise."""
MATRIX = [(zero, method) for zero in ZERO for method in METHODS]
ZERO[4] = {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True}
BFLOAT16, FLOAT16 = {"model": {"compute": "bfloat16"}}, {"model": {"compute": "float16"}}
WIDE, NARROW = {"microbatch_size": 8}, {"microbatch_size": 1}
GROUPED = {"group_by_length": True, "batch_size": 2, "microbatch_size": 1}
"""Batches so small that sorting by length changes which rows meet."""


@dataclass(frozen=True)
class Ran:
    """Everything that was run, by name."""

    folder: Path
    found: dict[str, dict[str, Any]]

    def series(self, name: str, metric: str) -> list[float]:
        return [row[metric] for row in self.found[name]["log"] if metric in row]

    def final(self, name: str) -> Path:
        return self.folder / name / "final"

    def weights(self, name: str) -> bytes:
        (file,) = self.final(name).glob("*model.safetensors")
        return file.read_bytes()


class _Cases:
    """The cases of one stage below a folder."""

    def __init__(self, stage: str, folder: Path):
        self._stage, self.folder, self._base = stage, folder, str(save_toy(folder / "base"))

    def case(self, name: str, method: str = "full", zero: int | None = None, **config: Any) -> dict[str, Any]:
        settings = {"max_steps": STEPS, "checkpoint_every": SAVED, "tuning": METHODS[method], "samples": 0, **config}
        if self._stage == "reward_model":
            del settings["samples"]
        deepspeed = None if zero is None else ZERO[zero]
        place = {"stage": self._stage, "folder": str(self.folder / name), "base": self._base}
        return place | {"deepspeed": deepspeed, "config": settings}

    def options(self) -> list[dict[str, Any]]:
        """Settings that DeepSpeed takes part in."""
        return [
            self.case("two-checkpointing", "lora", 3, gradient_checkpointing=True),
            self.case("two-offloaded", zero=4),
            self.case("two-autocast", zero=2) | BFLOAT16,
            *(self.case(f"two-half-{zero}", "lora", zero) | FLOAT16 for zero in (0, 2, 3)),
            self.resumed("two-half-2", "two-half-resumed", "lora", 2) | FLOAT16,
            self.resumed("alone-half", "half-grown", "lora", 3) | FLOAT16,
            self.resumed("two-offloaded", "two-offloaded-resumed", "full", 4),
        ]

    def several(self) -> list[dict[str, Any]]:
        """Two reward models in one stage, in whole, and stopped in the second and resumed."""
        stopped = self.case("members", zero=3, members=2, checkpoint_every=0)
        return [self.case("members-whole", zero=3, members=2), stopped | {"stop_after": STEPS + 1}, stopped]

    def resumed(self, whole: str, name: str, *args: Any, **config: Any) -> dict[str, Any]:
        """The same from the checkpoint that the whole run leaves; it is copied when the ranks get there."""
        return self.case(name, *args, **config) | {"checkpoints_of": str(self.folder / whole), "from_step": SAVED}


def run_matrix(stage: str, folder: Path) -> Ran:
    folder.mkdir(parents=True, exist_ok=True)
    cases, found = _Cases(stage, folder), {}

    def launch(ranks: int, *chosen: dict[str, Any]) -> None:
        place = folder / f"launch-{len(list(folder.glob('launch-*')))}"
        place.mkdir()
        zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
        (place / "zero3.json").write_text(json.dumps({"zero_optimization": zero}))
        results = train(ranks, chosen, place)
        found.update({Path(case["folder"]).name: result for case, result in zip(chosen, results, strict=True)})

    case, resumed = cases.case, cases.resumed
    launch(
        1,
        *(case(f"alone-{method}", method) for method in METHODS),
        case("alone-wide", **WIDE),
        case("alone-grouped", **GROUPED),
        case("alone-autocast") | BFLOAT16,
        case("alone-half", "lora") | FLOAT16,
        *([case("alone-members", members=2)] if stage == "reward_model" else ()),
        case("alone-zero", zero=2),  # last: a process that has met DeepSpeed keeps to it
    )
    launch(
        2,
        *(case(f"{zero}-{method}", method, zero) for zero, method in MATRIX),
        *(resumed(f"{zero}-{method}", f"{zero}-{method}-resumed", method, zero) for zero, method in MATRIX),
        case("two-wide", **WIDE),
        case("two-narrow", **NARROW),
        case("two-grouped", **GROUPED),
        *(cases.options() if stage == "sft" else cases.several()),
        resumed("alone-full", "grown", "full", 2),
        resumed("alone-prefix_tuning", "grown-prefix", "prefix_tuning", 3),
        resumed("0-lora", "other-stage", "lora", 3),
        case("stopped", zero=2, checkpoint_every=0) | {"stop_after": SAVED},
        case("stopped", zero=2, checkpoint_every=0),
    )
    launch(
        1,
        resumed("2-full", "shrunk"),
        resumed("3-prefix_tuning", "shrunk-prefix", "prefix_tuning"),
        resumed("3-full", "shrunk-zero", "full", 1),
    )
    return Ran(folder, found)
