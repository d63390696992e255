"""A chain with everything on, a checkpoint at every step, and each of its stages gone on with from any of them."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.checkpoints import CheckpointManager
from pipeline.config_loading import load_config
from pipeline.rundir import RunDir
from pipeline.seals import MANIFEST, read_seal
from scripts.benchmark.killing import LONGEST, REPOSITORY, rlhf, run
from scripts.benchmark.traces import differences, rows, trace

NOISE = '''import random

import numpy as np
import torch


def noise(prompts, completions, **columns):
    """Scores that use every global generator."""
    return [random.random() + np.random.rand() + float(torch.rand(())) for _ in completions]
'''
ROWS = {"demonstrations": 40, "preferences": 40, "prompts": 200}
"""Training rows: SFT and reward model pass twice over them in six steps, PPO 2.4 times in five."""
LORA = "{method: lora, r: 4, targets: all-linear}"
LORA_WITH_DROPOUT = "{method: lora, r: 4, targets: all-linear, dropout: 0.2}"
HF = {
    "max_steps": 6, "batch_size": 16, "microbatch_size": 8, "learning_rate": 5e-3, "warmup_steps": 1,
    "weight_decay": 0.1, "log_every": 2, "eval_every": 2, "checkpoint_every": 1, "keep_checkpoints": 9,
}  # fmt: skip
PPO = {
    "steps": 5, "rollout_batch_size": 96, "minibatch_size": 48, "microbatch_size": 24, "ppo_epochs": 2,
    "learning_rate": 3e-3, "warmup_steps": 1, "weight_decay": 0.1, "critic_warmup_steps": 1, "ema_decay": 0.8,
    "kl_controller": "adaptive", "kl_target": 0.5, "kl_horizon": 500, "score_normalisation": "running",
    "missing_eos": "{mode: replace, value: -1.0}", "ptx_coef": 0.5, "ptx_batch_size": 4, "eval_every": 1,
    "eval_prompts": 16, "checkpoint_every": 1, "keep_checkpoints": 9,
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """Settings of the three stages beside those above."""

    name: str
    sft: Mapping[str, Any] = field(default_factory=dict)
    reward_model: Mapping[str, Any] = field(default_factory=dict)
    ppo: Mapping[str, Any] = field(default_factory=dict)
    tracking: Mapping[str, Any] = field(default_factory=lambda: {"wandb": "disabled"})


FULL = Variant("full", reward_model={"centering_coef": 0.01})
WITH_LORA = Variant(
    "lora",
    sft={"tuning": LORA_WITH_DROPOUT, "group_by_length": "true"},
    reward_model={"tuning": LORA, "group_by_length": "true"},
    ppo={"tuning": LORA},
)
PACKED = Variant("packing", sft={"packing": "true", "max_length": 64, "batch_size": 4, "microbatch_size": 2})


class ExactChain:
    """The stages up to the one in question, played once; `whole` keeps what that one left."""

    def __init__(self, work: Path, variant: Variant, stage: str, fresh: bool = True):
        self.stage, self.fresh, self._work = stage, fresh, work
        work.mkdir(parents=True)
        overrides = [*_paths(work), *_settings(variant)]
        config = load_config(REPOSITORY / "configs/tiny.yaml", overrides)
        self.run = RunDir.create(config, ["scripts.benchmark.reliability"])
        for name in ("sft", "reward_model", "ppo"):
            start = time.monotonic()
            code = self.play(name)
            self.seconds = time.monotonic() - start
            assert code == 0, f"{name} without disturbance: exit code {code}, see {work}/output.txt"
            if name == stage:
                break
        self.folder = self.run.stage(stage).path
        self.whole = work / "whole"
        self.folder.rename(self.whole)
        self.expected = trace(self.whole)
        self.steps = max(step for step, _ in _steps(self.whole))

    def play(self, stage: str, kill_after: float = LONGEST) -> int | None:
        """`rlhf stage`: in a new process elsewhere when `fresh`, else in this one; its exit code, None when killed."""
        if not self.fresh:
            from pipeline.stage_process import run_stage

            return run_stage(self.run, stage)
        elsewhere = self._work / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        command = [*_other_host(), *rlhf("stage", stage, str(self.run.path))]
        return run(command, self._work / "output.txt", kill_after, elsewhere)

    def resumed(self, step: int, change: Callable[[Path], None] | None = None) -> list[str]:
        """What differs when the stage goes on from the checkpoint of `step`, its content perhaps changed before.

        Step 0 means that it was killed before the first checkpoint.
        """
        self._interrupt(step)
        if change:
            self._reseal(step, change)
        code = self.play(self.stage)
        found = differences(trace(self.folder), self.expected) if code == 0 else [f"exit code {code}"]
        shutil.rmtree(self.folder)
        return found

    def _interrupt(self, step: int) -> None:
        """Make the folder what a kill leaves: rows of later steps, half a row, a later best policy, no end."""
        shutil.copytree(self.whole, self.folder)
        for number, path in _steps(self.folder):
            if number > step:
                shutil.rmtree(path)
        (self.folder / "final").rename(self.folder / "best")
        manifest = json.loads((self.folder / "stage.json").read_text())
        (self.folder / "stage.json").write_text(json.dumps(manifest | {"status": "running"}))
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 9, "loss')

    def _reseal(self, step: int, change: Callable[[Path], None]) -> None:
        """Change the content of a checkpoint and save it as if it had been written so."""
        checkpoint = self.folder / "checkpoints" / f"step-{step:06d}"
        identity = read_seal(checkpoint, step).identity
        aside = self._work / "changed"
        checkpoint.rename(aside)
        (aside / MANIFEST).unlink()
        change(aside)
        manager = CheckpointManager(self.folder / "checkpoints", keep=99, identity=identity)
        manager.save(step, partial(shutil.copytree, aside, dirs_exist_ok=True))
        shutil.rmtree(aside)


def _steps(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("checkpoints/step-*"):
        yield int(path.name.removeprefix("step-")), path


def _settings(variant: Variant) -> Iterator[str]:
    sections = {"sft": HF | {"samples": 2, "sample_tokens": 8}, "reward_model": HF, "ppo": PPO, "tracking": {}}
    for section, common in sections.items():
        for key, value in {**common, **getattr(variant, section)}.items():
            yield f"{section}.{key}={value}"


def _paths(work: Path) -> Iterator[str]:
    """Overrides that hold wherever the command is started."""
    from scripts.prepare_tiny import write

    write(work / "data", 0)
    (work / "noise.py").write_text(NOISE)
    for role, count in ROWS.items():
        file = work / "data" / f"{role}.train.jsonl"
        kept = rows(file)[:count]
        if role == "preferences":
            kept = [row | {"margin": 0.1 * (i % 3)} for i, row in enumerate(kept)]
        file.write_text("".join(json.dumps(row) + "\n" for row in kept))
        yield f"data.{role}.train={file}"
        yield f"data.{role}.eval={work}/data/{role}.eval.jsonl"
    yield from (f"model.path={work}/data/model", f"run.root={work}", "prepare=null")
    yield f"reward=[{{model: reward_model}}, {{function: '{work}/noise.py:noise', weight: 0.1}}]"
    yield f"evaluation.judge={REPOSITORY}/scripts/prepare_tiny.py:good"


def _other_host() -> list[str]:
    """A prefix under which a command sees another host name, where that is allowed."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("hostname") is None:
        return []
    return ["unshare", "--uts", "sh", "-c", 'hostname elsewhere; exec "$@"', "sh"]
