"""Peak memory of the PPO stage: four roles on one base against four models of their own, on the same batch.

    python scripts/benchmark/ppo_memory.py [--root runs] [--microbatch-size 1]

SmolLM2-135M in float32, LoRA in every stage, no frozen trunk. SFT and reward model are trained for a few steps, then
the PPO stage runs twice in fresh processes, which differ only in where each role's base comes from. Both must give
the same metrics; the peak is that of the whole process (ru_maxrss), libraries included.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

NAME = "ppo_memory"
LORA = "{method: lora, r: 16, alpha: 32}"
OVERRIDES = {
    "run.name": NAME,
    "model.dtype": "float32",
    "model.compute": "float32",
    "trunk.frozen_layers": 0,
    "sft.tuning": LORA,
    "sft.max_steps": 2,
    "reward_model.tuning": LORA,
    "reward_model.max_steps": 2,
    "ppo.tuning": LORA,
    "ppo.steps": 2,
    "ppo.warmup_steps": 0,
    "ppo.rollout_batch_size": 16,
    "ppo.minibatch_size": 8,
    "ppo.gradient_checkpointing": "true",
    "data.demonstrations": "{train: data/imdb/demonstrations.eval.jsonl}",
    "data.preferences": "{train: data/imdb/preferences.train.jsonl}",
    "data.prompts": "{train: data/imdb/prompts.train.jsonl}",
}
COMPARED = ("objective/score", "objective/kl", "policy/loss", "value/loss")


def prepare(root: Path, microbatch_size: int) -> Path:
    """A run folder whose SFT and reward model are trained."""
    overrides = [
        f"{key}={value}"
        for key, value in {**OVERRIDES, "run.root": root, "ppo.microbatch_size": microbatch_size}.items()
    ]
    for stage in ("sft", "reward_model"):
        command = [
            sys.executable,
            "-m",
            "pipeline.cli",
            "run",
            "configs/imdb_smollm2.yaml",
            *overrides,
            "--only",
            stage,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return root / NAME


def measure(run: Path, bases: str) -> dict[str, float]:
    """Peak bytes and metrics of a PPO stage in a process of its own."""
    command = [sys.executable, __file__, "--child", bases, "--run", str(run)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def child(run: Path, bases: str) -> None:
    """Run the stage here and print what it took."""
    import stages.ppo.stage  # noqa: F401  what every PPO process imports
    from pipeline.rundir import RunDir
    from pipeline.stage_process import run_stage

    libraries = peak()
    if bases == "separate":
        separate_bases()
    if run_stage(RunDir.open(run), "ppo", force=True):
        sys.exit(1)
    rows = [json.loads(line) for line in (run / "ppo" / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "objective/score" in row][-1]
    print(json.dumps({"peak": peak(), "libraries": libraries} | {name: last[name] for name in COMPARED}))


def separate_bases() -> None:
    """Let every role load its base anew, as four models would."""
    from stages.models.identity import BaseIdentity, weights_digest
    from stages.models.load import load_causal_lm
    from stages.models.roles import Roles

    def load(self: Roles, base: str):
        return load_causal_lm(base, "float32").requires_grad_(False)

    def identity(self: Roles, base: str) -> BaseIdentity:
        if base not in self._digests:
            self._digests[base] = weights_digest(load(self, base))
        return BaseIdentity(base, self._digests[base])

    Roles.frozen_base, Roles.identity = load, identity


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--microbatch-size", type=int, default=1, help="completions per forward pass")
    parser.add_argument("--child", choices=("one", "separate"), help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.run, arguments.child)
        return
    run = prepare(arguments.root, arguments.microbatch_size)
    found = {bases: measure(run, bases) for bases in ("one", "separate")}
    one, separate = found["one"], found["separate"]
    for name in COMPARED:
        print(f"{name}: {one[name]:.6g} on one base, {separate[name]:.6g} on four")
    print(f"libraries alone      {one['libraries'] / 1e9:.3f} GB")
    print(f"peak on one base     {one['peak'] / 1e9:.3f} GB")
    print(f"peak on four bases   {separate['peak'] / 1e9:.3f} GB")
    print(f"ratio                {one['peak'] / separate['peak']:.3f}")


if __name__ == "__main__":
    main()
