"""A real run folder whose stage only counts: the protocol around training, without the minutes of training.

Everything is the program's own but the training: config, identity, locks, checkpoints, final model, stage.json.
"""

import json
import os
import struct
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from hashlib import sha256
from pathlib import Path

from pipeline import cli, stage_process
from pipeline.config_loading import load_config
from pipeline.rundir import RunDir
from stages.base import StageContext, StageResult
from stages.durable import replacing

STEPS = 6
CONFIG = """\
run: {{name: toy, root: {root}/runs}}
model: {{path: {root}/base}}
data:
  demonstrations: {{train: {root}/demonstrations.jsonl}}
  preferences: {{train: {root}/preferences.jsonl}}
  prompts: {{train: {root}/prompts.jsonl, eval: {root}/prompts.jsonl}}
sft: {{batch_size: 2, microbatch_size: 1, max_length: 8}}
reward_model: {{batch_size: 2, microbatch_size: 2, max_length: 8}}
ppo: {{rollout_batch_size: 4, minibatch_size: 2, microbatch_size: 1, max_prompt_tokens: 4, max_new_tokens: 4}}
reward: [{{function: "{root}/rewards.py:score"}}]
"""
ROWS = {
    "demonstrations": {"prompt": "the film", "completion": " is great"},
    "preferences": {"prompt": "the film", "chosen": " is great", "rejected": " is bad"},
    "prompts": {"prompt": "the film"},
}
START_CRASHING = "TOY_CRASH_AT"
"""A crash point that is armed before the save of step 4, when there are checkpoints already."""
WEIGHTS = 20_000
"""Bytes of a toy checkpoint's largest file."""


def make(root: Path) -> RunDir:
    """A run folder in which no stage has started, with all that its config names."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.yaml").write_text(CONFIG.format(root=root))
    (root / "base").mkdir()
    (root / "base/config.json").write_text('{"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64}')
    (root / "base/tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (root / "base/chat_template.jinja").write_text("{{ messages[0].content }}")
    write_weights(root / "base", 1.0)
    (root / "rewards.py").write_text("def score(prompts, completions, **columns):\n    return [1.0] * len(prompts)\n")
    for name, row in ROWS.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(4)))
    return RunDir.create(load_config(root / "config.yaml"), ["rlhf", "run"])


def write_weights(base: Path, value: float) -> None:
    """A safetensors file with one number."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    content = struct.pack("<Q", len(header)) + header + struct.pack("<f", value)
    (base / "model.safetensors").write_bytes(content)


def train(config: object, inputs: object, context: StageContext) -> StageResult:
    """Six steps, each a digest of the one before; the best one is kept beside the state, as PPO does."""
    value, done = "start", 0
    found = context.checkpoints.latest()
    if found:
        done, folder = found
        value = (folder / "state.json").read_text()
    for step in range(done + 1, STEPS + 1):
        value = sha256(f"{value} {step}".encode()).hexdigest()
        context.tracker.log({"sft/loss": 1 / step}, step)
        if step == 4 and START_CRASHING in os.environ:
            os.environ["RLHF_CRASH_AT"] = os.environ[START_CRASHING]
        context.checkpoints.save(step, writer(value))
    final = context.folder / "final"
    with replacing(final) as aside:
        writer(value)(aside)
    return StageResult(final, False, {"steps": STEPS})


def writer(value: str) -> Callable[[Path], None]:
    """Fill a folder with a state that can be told from every other."""

    def write(folder: Path) -> None:
        (folder / "state.json").write_text(value)
        (folder / "weights.bin").write_bytes((value.encode() * (WEIGHTS // len(value) + 1))[:WEIGHTS])
        (folder / "best").mkdir()
        (folder / "best/weights.bin").write_bytes(value.encode())

    return write


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint that was accepted holds what one save wrote."""
    value = (folder / "state.json").read_text()
    parts = (folder / "weights.bin").read_bytes(), (folder / "best/weights.bin").read_bytes()
    return parts == ((value.encode() * (WEIGHTS // len(value) + 1))[:WEIGHTS], value.encode())


def run_stage(run: RunDir, log: Path, variables: Mapping[str, str] | None = None, *options: str) -> int:
    """`rlhf stage sft RUN` in a process of its own that trains the toy; its exit code."""
    import torch  # noqa: F401  once here, not in each of hundreds of processes

    def action() -> None:
        stage_process.TRAINING["sft"] = train  # in the child alone: other rows train in this process
        cli.main(["stage", "sft", str(run.path), *options])

    return in_child(action, log, variables or {})


def in_child(action: Callable[[], object], log: Path, variables: Mapping[str, str]) -> int:
    """Call `action` in a forked process, its output in `log`; the exit code."""
    child = os.fork()
    if child == 0:
        os.environ.update(variables)
        code = 1
        with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
            try:
                action()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException as error:  # a traceback is what must not happen, so it is shown
                print(f"Traceback: {type(error).__name__}: {error}")
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
