"""Every fine-tuning method through the whole chain, on SmolLM2-135M and movie reviews, at equal steps.

    python scripts/benchmark/finetuning.py sweep     # SFT at two learning rates per method; the better is kept
    python scripts/benchmark/finetuning.py run       # the three stages and the evaluation of each method
    python scripts/benchmark/finetuning.py time      # seconds per step, one method after the other, on a quiet machine
    python scripts/benchmark/finetuning.py merged    # speed of generation: adapter beside the weights against merged
    python scripts/benchmark/finetuning.py table     # the table and the picture of docs/finetuning.md

Everything is kept under --root; what is finished is skipped. The methods differ in `tuning` and in the learning rate
alone: that of SFT is the better of the sweep, reward model and PPO take fixed multiples of it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from pipeline.config_loading import load_config

CONFIG = Path("configs/imdb_smollm2.yaml")
RATES = {
    "full": (5e-5, 2e-4),
    "adapter": (1e-3, 4e-3),
    "prefix_tuning": (3e-3, 1e-2),
    "prompt_tuning": (3e-2, 2e-1),
    "p_tuning": (5e-4, 2e-3),
    "lora": (1e-3, 4e-3),
}
CHOSEN = {
    "full": 2e-4,
    "adapter": 1e-3,
    "prefix_tuning": 1e-2,
    "prompt_tuning": 2e-1,
    "p_tuning": 5e-4,
    "lora": 4e-3,
}
"""The better ones of the sweep in docs/finetuning.md; a sweep of one's own under --root comes before them."""
TUNING = {"p_tuning": "{method: p_tuning, encoder: mlp}"}
REWARD_MODEL_RATE, PPO_RATE = 0.3, {"prompt_tuning": 0.1}
"""Learning rate of the stage / learning rate of SFT; that of PPO where it is not 0.6 (prompt tuning: KL 30 there)."""
SETTINGS = {
    "model.dtype": "float32",
    "model.compute": "float32",
    "trunk.frozen_layers": 0,
    "sft.max_steps": 24,
    "sft.batch_size": 8,
    "sft.microbatch_size": 8,
    "sft.samples": 0,
    "sft.log_every": 1,
    "reward_model.max_steps": 30,
    "reward_model.log_every": 1,
    "ppo.steps": 6,
    "ppo.rollout_batch_size": 16,
    "ppo.minibatch_size": 8,
    "ppo.microbatch_size": 8,
    "ppo.warmup_steps": 4,
    "ppo.eval_prompts": 32,
    "ppo.eval_every": 3,
    "evaluation.prompts": 96,
    "evaluation.batch_size": 48,
}
SWEEP = {"sft.max_steps": 8}
HELD_OUT_PAIRS = 250
SHORT = {
    "sft.max_steps": 6,
    "reward_model.max_steps": 6,
    "ppo.steps": 4,
    "data.demonstrations": "{train: data/imdb/demonstrations.eval.jsonl}",
    "data.preferences": "{train: data/imdb/preferences.train.jsonl}",
    "data.prompts": "{train: data/imdb/prompts.train.jsonl}",
}


def rlhf(root: Path, name: str, method: str, rate: float, more: dict[str, object], *flags: str) -> Path:
    """Run the chain for a method; the run's folder."""
    tuning = TUNING.get(method, f"{{method: {method}}}")
    factors = {"sft": 1.0, "reward_model": REWARD_MODEL_RATE, "ppo": PPO_RATE.get(method, 0.6)}
    pairs = f"{{train: data/imdb/preferences.train.jsonl, eval: {held_out_pairs(root)}}}"
    settings = {**SETTINGS, "data.preferences": pairs, "run.name": name, "run.root": root}
    for stage, factor in factors.items():
        settings |= {f"{stage}.tuning": tuning, f"{stage}.learning_rate": f"{rate * factor:.3g}"}
    overrides = [f"{key}={value}" for key, value in {**settings, **more}.items()]
    command = [sys.executable, "-m", "pipeline.cli", "run", str(CONFIG), *overrides, *flags]
    print(time.strftime("%H:%M:%S"), name, flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return root / name


def prepare_data() -> None:
    """Make the data of the config, as its own run would."""
    prepare = load_config(CONFIG).prepare
    if not all(Path(file).exists() for file in prepare.creates):
        subprocess.run([sys.executable, prepare.script, *prepare.arguments], check=True)


def held_out_pairs(root: Path) -> Path:
    """The first of the held-out preferences, so that judging does not cost more than training."""
    few = root / "preferences.eval.jsonl"
    if not few.is_file():
        rows = Path("data/imdb/preferences.eval.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        few.write_text("".join(rows[:HELD_OUT_PAIRS]), encoding="utf-8")
    return few


def manifest(run: Path, stage: str) -> dict:
    return json.loads((run / stage / "stage.json").read_text())


def sweep(root: Path) -> dict[str, dict[str, float]]:
    """Held-out loss of SFT by method and learning rate."""
    losses: dict[str, dict[str, float]] = {}
    for method, rates in RATES.items():
        for rate in rates:
            name = f"sweep-{method}-{rate:g}"
            run = rlhf(root, name, method, rate, SWEEP, "--only", "sft")
            losses.setdefault(method, {})[f"{rate:g}"] = manifest(run, "sft")["headline"]["eval_loss"]
    (root / "sweep.json").write_text(json.dumps(losses, indent=2))
    return losses


def best_rates(root: Path) -> dict[str, float]:
    """Learning rate of SFT by method."""
    if not (root / "sweep.json").is_file():
        return CHOSEN
    losses = json.loads((root / "sweep.json").read_text())
    return {method: float(min(found, key=found.get)) for method, found in losses.items()}


def run_all(root: Path) -> None:
    """The chain of every method."""
    for method, rate in best_rates(root).items():
        rlhf(root, method, method, rate, {})


def time_all(root: Path, rounds: int) -> None:
    """Median seconds between steps of each stage, the methods one after the other in each round."""
    seconds: dict[str, dict[str, list[float]]] = {}
    for number in range(1, rounds + 1):
        for method, rate in best_rates(root).items():
            run = rlhf(root, f"time{number}-{method}", method, rate, SHORT)
            for stage, metric in (("sft", "sft/loss"), ("reward_model", "reward_model/loss"), ("ppo", "objective/kl")):
                rows = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
                times = [row["time"] for row in rows if metric in row]
                gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
                seconds.setdefault(method, {}).setdefault(stage, []).extend(gaps)
    medians = {m: {stage: statistics.median(gaps) for stage, gaps in found.items()} for m, found in seconds.items()}
    (root / "seconds.json").write_text(json.dumps(medians, indent=2))


def merged(root: Path, tokens: int = 128, rounds: int = 7) -> None:
    """Tokens per second of LoRA's SFT model, one prompt and greedy: as an adapter and merged, turn by turn."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    final, out = root / "lora" / "sft" / "final", root / "lora-merged"
    if not out.is_dir():
        subprocess.run([sys.executable, "-m", "pipeline.cli", "export", str(final), "--merge", str(out)], check=True)
    models = {
        "adapter": AutoPeftModelForCausalLM.from_pretrained(final).eval(),
        "merged": AutoModelForCausalLM.from_pretrained(out).eval(),
    }
    ids = AutoTokenizer.from_pretrained(out)("The film", return_tensors="pt").input_ids
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            start = time.perf_counter()
            with torch.no_grad():
                model.generate(
                    input_ids=ids, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0
                )
            speeds[name].append(tokens / (time.perf_counter() - start))
    ratios = [b / a for a, b in zip(speeds["adapter"][1:], speeds["merged"][1:], strict=True)]
    found = {name: statistics.median(values[1:]) for name, values in speeds.items()}
    found |= {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    (root / "merged.json").write_text(json.dumps(found, indent=2))
    print(json.dumps(found, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("sweep", "run", "time", "merged", "table"))
    parser.add_argument("--root", type=Path, default=Path("runs/finetuning"), help="folder of all runs")
    parser.add_argument("--rounds", type=int, default=2, help="of `time`")
    arguments = parser.parse_args()
    arguments.root.mkdir(parents=True, exist_ok=True)
    prepare_data()
    if arguments.part == "table":
        from finetuning_table import write

        write(arguments.root, list(RATES))
        return
    parts = {"sweep": sweep, "run": run_all, "time": partial(time_all, rounds=arguments.rounds), "merged": merged}
    parts[arguments.part](arguments.root)


if __name__ == "__main__":
    main()
