"""Repeat the PPO stage and the evaluation of a finished run with other seeds: minimum, median and maximum.

    python scripts/benchmark/ppo_seeds.py runs/imdb_smollm2 --seeds 2 3

SFT and reward model are taken from the run as they are; each seed gets a run folder of its own beside it. The run's
own seed counts as one of the seeds.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

METRICS = ("judge", "score", "kl", "length", "stopped_fraction", "distinct_2")


def repeat_ppo(run: Path, suffix: str, overrides: Sequence[str]) -> Path:
    """The folder `<run>-<suffix>` beside a finished run: its SFT and reward model, PPO and evaluation done anew."""
    copy = run.with_name(f"{run.name}-{suffix}")
    for stage in ("sft", "reward_model"):
        if (run / stage).exists() and not (copy / stage).exists():
            shutil.copytree(run / stage, copy / stage)
    command = [sys.executable, "-m", "pipeline.cli", "run", str(run / "config.yaml")]
    command += [f"run.name={copy.name}", f"run.root={run.parent}", *overrides, "--from", "ppo"]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)
    return copy


def row(run: Path) -> dict[str, float]:
    """The PPO policy's metrics, its distinct-2 relative to SFT's, and the seconds of PPO and evaluation."""
    results = json.loads((run / "results.json").read_text())
    models, stages = results["models"], results["stages"]
    found = {name: models["ppo"][name]["value"] for name in METRICS if name in models["ppo"]}
    found["distinct_2 / SFT's"] = models["ppo"]["distinct_2"]["value"] / models["sft"]["distinct_2"]["value"]
    found |= {f"{name} seconds": stages[name]["seconds"] for name in ("ppo", "evaluation")}
    return found | {"ppo peak GB": stages["ppo"]["peak_bytes"] / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3], help="seeds beside the run's own")
    arguments = parser.parse_args()
    copies = [repeat_ppo(arguments.run, f"seed{seed}", [f"seed={seed}"]) for seed in arguments.seeds]
    rows = [row(run) for run in (arguments.run, *copies)]
    print(f"\n| PPO of {arguments.run.name}, {len(rows)} seeds | min | median | max |\n|---|---|---|---|")
    for name in rows[0]:
        values = [r[name] for r in rows]
        print(f"| {name} | {min(values):.3f} | {statistics.median(values):.3f} | {max(values):.3f} |")


if __name__ == "__main__":
    main()
