"""How far the same training differs when its batches are split otherwise over ranks and passes.

    python scripts/benchmark/rank_invariance.py [--steps 3] [--zero 0 2] [--root runs/rank_invariance]

`configs/tiny.yaml` in float32, batches of 64: whole on one rank; in 8 passes on one rank (accumulation); whole and in 4
passes on two ranks under each ZeRO stage. Each stage starts from the same parents. What is said is the largest
difference to the first: of a loss relative to it, of a trained weight absolutely.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

LOSSES = {"sft": "sft/loss", "reward_model": "reward_model/loss", "ppo": "policy/loss"}
PARENTS = {"sft": (), "reward_model": ("sft",), "ppo": ("sft", "reward_model")}
BATCH = 64


@dataclass(frozen=True)
class Split:
    """Ranks, rows per pass and rank, ZeRO stage (None: plain torch)."""

    ranks: int
    rows: int
    zero: int | None = None

    @property
    def name(self) -> str:
        passes = BATCH // self.ranks // self.rows
        zero = "" if self.zero is None else f", ZeRO {self.zero}"
        return f"{self.ranks} x {passes} x {self.rows}{zero}"

    def overrides(self, stage: str, steps: int) -> Iterator[str]:
        sizes = ("rollout_batch_size", "minibatch_size") if stage == "ppo" else ("batch_size",)
        yield from (f"{stage}.{size}={BATCH}" for size in sizes)
        yield f"{stage}.microbatch_size={self.rows}"
        yield f"{stage}.{'steps' if stage == 'ppo' else 'max_steps'}={steps}"
        yield from (f"{stage}.log_every=1",) if stage != "ppo" else ()
        yield f"launch.ranks={self.ranks}"
        if self.zero is not None:
            yield f"deepspeed.zero_stage={self.zero}"


def train(stage: str, split: Split, steps: int, folder: Path, parents: Path | None) -> Path:
    """The folder of the stage, trained with that split from the parents of another run."""
    shutil.rmtree(folder, ignore_errors=True)
    for parent in PARENTS[stage] if parents else ():
        shutil.copytree(parents / parent, folder / parent)
    command = [sys.executable, "-m", "pipeline.cli", "run", "configs/tiny.yaml", "--only", stage]
    command += [f"run.root={folder.parent}", f"run.name={folder.name}", *split.overrides(stage, steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{split.name}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return folder / stage


def difference(stage: str, one: Path, other: Path) -> tuple[float, float]:
    """Largest relative difference of a loss, and largest absolute one of a weight."""
    losses = []
    for folder in (one, other):
        rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        losses.append([row[LOSSES[stage]] for row in rows if LOSSES[stage] in row])
    assert len(losses[0]) == len(losses[1]) > 0, f"{one} and {other} logged other steps"
    loss = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
    first, second = (load_file(next((folder / "final").glob("*model.safetensors"))) for folder in (one, other))
    return loss, max(float((first[k].float() - second[k].float()).abs().max()) for k in first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--zero", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--root", type=Path, default=Path("runs/rank_invariance"))
    options = parser.parse_args()
    splits = [Split(1, BATCH // 8), *(Split(2, rows, z) for z in options.zero for rows in (BATCH // 2, BATCH // 8))]
    base = Split(1, BATCH)
    run = options.root / "whole"
    print("| stage | ranks x passes x rows | loss, relative | weights, absolute |\n|---|---|---|---|")
    for stage in LOSSES:
        if stage == "sft":
            whole = train(stage, base, options.steps, run, None)
        else:
            shutil.copytree(train(stage, base, options.steps, options.root / f"whole-{stage}", run), run / stage)
            whole = run / stage
        for number, split in enumerate(splits):
            other = train(stage, split, options.steps, options.root / f"{stage}-{number}", run)
            loss, weight = difference(stage, whole, other)
            print(f"| {stage} | {split.name} | {loss:.1e} | {weight:.1e} |", flush=True)


if __name__ == "__main__":
    main()
