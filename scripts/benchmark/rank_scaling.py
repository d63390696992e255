"""Strong and weak scaling of PPO from one process to two on this machine, as ratios measured side by side.

    python -m scripts.benchmark.rank_scaling [--rounds 3] [--zero 0 2] [--root runs]

A Llama with random weights (9 M parameters), full fine-tuning of policy and value model in float32, one thread per
process so that two processes have twice the arithmetic of one. Strong: the same rollout on two ranks, t1 / t2 (ideal
2). Weak: twice the rollout on two ranks, t1 / t2 (ideal 1). The seconds are medians over the iterations after the
first, without evaluation.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from scripts.prepare_tiny import write

STEPS = 4
ROWS = 32
SIZES = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 5, "num_attention_heads": 6}


def model(folder: Path) -> Path:
    """The tiny model's tokenizer and layout at a size at which arithmetic dominates."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    write(folder, seed=0)
    config = AutoConfig.from_pretrained(folder / "model")
    config.update({**SIZES, "num_key_value_heads": 6, "head_dim": 64})
    large = folder / "large"
    AutoModelForCausalLM.from_config(config).save_pretrained(large)
    AutoTokenizer.from_pretrained(folder / "model").save_pretrained(large)
    return large


def seconds(data: Path, root: Path, name: str, ranks: int, rows: int, zero: int | None) -> list[float]:
    """Seconds of each PPO iteration after the first."""
    settings = {
        "run.root": root,
        "run.name": name,
        "model.path": data / "large",
        "data.prompts": f"{{train: {data}/prompts.train.jsonl}}",
        "reward": "[{function: scripts/prepare_tiny.py:good}]",
        "ppo.steps": STEPS,
        "ppo.rollout_batch_size": rows,
        "ppo.minibatch_size": rows,
        "ppo.microbatch_size": 16,
        "ppo.max_new_tokens": 24,
        "ppo.learning_rate": "1e-6",
        "ppo.max_empty_fraction": 1,
        "ppo.checkpoint_every": 0,
        "launch.ranks": ranks,
        **({} if zero is None else {"deepspeed.zero_stage": zero}),
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    disabled = ["prepare=null", "evaluation.judge=null", "sft.enabled=false", "reward_model.enabled=false"]
    command = [sys.executable, "-m", "pipeline.cli", "run", "configs/tiny.yaml", *disabled, *overrides]
    command += ["--only", "ppo", "--force", "ppo"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{name}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    rows_of_log = map(json.loads, (root / name / "ppo/metrics.jsonl").read_text().splitlines())
    return [row["time/step"] for row in rows_of_log if "time/step" in row][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--zero", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--root", type=Path, default=Path("runs/rank_scaling"))
    options = parser.parse_args()
    model(options.root / "data")
    for zero in options.zero:
        strong, weak = [], []
        for _ in range(options.rounds):
            one, same, double = (
                statistics.median(seconds(options.root / "data", options.root, name, ranks, rows, stage))
                for name, ranks, rows, stage in (
                    ("one", 1, ROWS, None),
                    ("same", 2, ROWS, zero),
                    ("double", 2, 2 * ROWS, zero),
                )
            )
            strong.append(one / same)
            weak.append(one / double)
        print(f"ZeRO {zero}: strong {_spread(strong)} of 2, weak {_spread(weak)} of 1; {one:.2f} s an iteration alone")


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
