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
from pathlib import Path

import yaml

METRICS = ("judge", "score", "kl", "length", "stopped_fraction", "distinct_2")


def run_seed(run: Path, seed: int) -> Path:
    """The folder of a run that differs from `run` in the seed of PPO and evaluation."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    copy = run.with_name(f"{run.name}-seed{seed}")
    for stage in ("sft", "reward_model"):
        if not (copy / stage).exists():
            shutil.copytree(run / stage, copy / stage)
    overrides = [f"run.name={copy.name}", f"run.root={run.parent}", f"seed={seed}"]
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "run",
        str(run / "config.yaml"),
        *overrides,
        "--from",
        "ppo",
    ]
    print(f"seed {seed} (the run itself has {config['seed']}):", " ".join(command), flush=True)
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
    rows = [row(arguments.run), *(row(run_seed(arguments.run, seed)) for seed in arguments.seeds)]
    print(f"\n| PPO of {arguments.run.name}, {len(rows)} seeds | min | median | max |\n|---|---|---|---|")
    for name in rows[0]:
        values = [r[name] for r in rows]
        print(f"| {name} | {min(values):.3f} | {statistics.median(values):.3f} | {max(values):.3f} |")


if __name__ == "__main__":
    main()
