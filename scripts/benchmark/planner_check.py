"""What `rlhf plan` predicts beside what real stages take: peak memory of a process without its libraries.

    python scripts/benchmark/planner_check.py [--root runs/planner_check]

The chain of configs/tiny.yaml with a wider model (24 million parameters), so that the model outweighs the libraries:
full fine-tuning, PPO with recomputed activations, and LoRA. Each stage is a process of its own, started by `rlhf run`;
measured is its ru_maxrss less that of a process that has imported the same libraries. Less than 2 GB.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.config import STAGES
from pipeline.config_loading import load_config
from pipeline.planner.memory import StageMemory, stage_memory
from pipeline.planner.roles import cast_of
from pipeline.planner.sharding import Split

CONFIG = "configs/tiny.yaml"
SIZES = {
    **{"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8},
    **{"num_attention_heads": 8, "num_key_value_heads": 4},
}
LORA = [f"{stage}.tuning={{method: lora, r: 16, targets: all-linear}}" for stage in STAGES]
CASES = (
    *(("full", "full", stage, []) for stage in STAGES),
    ("full, recomputed", "full", "ppo", ["ppo.gradient_checkpointing=true"]),
    *(("LoRA", "lora", stage, LORA) for stage in STAGES),
)
"""What is tuned, the run's name, the stage, and the overrides; a stage stands on those before it in its run."""
SHORT = [
    *("sft.max_steps=2", "sft.max_length=16", "sft.learning_rate=1e-4", "sft.warmup_steps=0", "sft.samples=0"),
    *("reward_model.max_steps=2", "reward_model.max_length=16", "reward_model.warmup_steps=0"),
    *("reward_model.learning_rate=1e-4", "ppo.steps=1", "ppo.ppo_epochs=2", "ppo.learning_rate=1e-5"),
    *("ppo.max_prompt_tokens=5", "ppo.max_new_tokens=12", "ppo.minibatch_size=64", "ppo.microbatch_size=64"),
    *("sft.checkpoint_every=0", "reward_model.checkpoint_every=0", "ppo.checkpoint_every=0", "ppo.eval_prompts=8"),
]
"""Two optimizer steps, with the longest sequences as long as the data's."""
ROWS = 128
"""Of each file: as many as two steps need."""
LIBRARIES = """
import resource
import stages.ppo.stage, stages.reward_model.stage, stages.sft.stage, pipeline.stage_process
import transformers.models.llama.modeling_llama, torch
torch.ones(2, requires_grad=True).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def widen(model: Path) -> None:
    """Put a wider random model beside the tiny tokenizer at `model`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    narrow = LlamaConfig.from_pretrained(model).to_dict()
    LlamaForCausalLM(LlamaConfig(**{k: v for k, v in narrow.items() if k != "head_dim"} | SIZES)).save_pretrained(model)


def prepare(root: Path) -> list[str]:
    """The tiny data and the wide model; overrides of the config that name them."""
    data = root / "data"
    if not (data / "prepared").is_file():
        script = [sys.executable, "scripts/prepare_tiny.py", "--out", str(data)]
        subprocess.run(script, check=True, stdout=subprocess.DEVNULL)
        widen(data / "model")
        for file in data.glob("*.jsonl"):
            file.write_text("".join(file.read_text().splitlines(keepends=True)[:ROWS]))
        (data / "prepared").touch()
    files = {"demonstrations": "data.demonstrations", "preferences": "data.preferences"}
    trained = [f"{key}={{train: {data / name}.train.jsonl}}" for name, key in files.items()]
    prompts = f"data.prompts={{train: {data}/prompts.train.jsonl, eval: {data}/prompts.eval.jsonl}}"
    return ["prepare=null", f"model.path={data / 'model'}", f"run.root={root}", *trained, prompts]


def measured(overrides: Sequence[str], stage: str) -> int:
    """Peak bytes of a stage that is run anew, libraries included."""
    command = [sys.executable, "-m", "pipeline.cli", "run", CONFIG, *overrides, "--only", stage, "--force", stage]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    config = load_config(CONFIG, overrides)
    manifest = Path(config.run.root) / config.run.name / stage / "stage.json"
    return json.loads(manifest.read_text())["peak_bytes"]


def predicted(overrides: Sequence[str], stage: str) -> StageMemory:
    """What the planner says of that stage."""
    config = load_config(CONFIG, overrides)
    return stage_memory(config, stage, cast_of(config, stage), Split())


def libraries() -> int:
    """Peak bytes of a process that imports what a stage imports, and computes once."""
    done = subprocess.run([sys.executable, "-c", LIBRARIES], check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def compare(root: Path) -> Iterator[tuple[str, str, int, StageMemory]]:
    """Method, stage, measured bytes without the libraries, and the plan."""
    common, base = prepare(root), libraries()
    for method, run, stage, changes in CASES:
        overrides = [*common, *SHORT, *changes, f"run.name={run}"]
        yield method, stage, measured(overrides, stage) - base, predicted(overrides, stage)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("runs/planner_check"), help="folder of data and runs")
    root = parser.parse_args().root
    print("| method | stage | measured, GB | predicted, GB | predicted / measured | predicted worst phase |")
    print("|---|---|---|---|---|---|")
    for method, stage, found, plan in compare(root):
        ratio = plan.peak / found
        print(
            f"| {method} | {stage} | {found / 1e9:.3f} | {plan.peak / 1e9:.3f} | {ratio:.2f} | {plan.worst.name} |",
            flush=True,
        )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"\n{used.ru_utime + used.ru_stime:.0f} s of CPU")


if __name__ == "__main__":
    main()
