"""A tiny model, an adapter on it, a config and a run that use it: what attacks and secrets are tried on."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.checkpoints import CheckpointManager
from pipeline.config_loading import load_config
from pipeline.rundir import RunDir
from stages.base import StageContext

if TYPE_CHECKING:
    from transformers import Trainer

CONFIG = """\
run: {{name: tiny, root: {runs}}}
model: {{path: {model}}}
data:
  demonstrations: {{train: {data}/demonstrations.train.jsonl}}
  preferences: {{train: {data}/preferences.train.jsonl}}
  prompts: {{train: {data}/prompts.train.jsonl}}
sft: {{max_length: 32}}
reward_model: {{max_length: 32}}
ppo: {{max_prompt_tokens: 8, max_new_tokens: 12, rollout_batch_size: 64, minibatch_size: 32, microbatch_size: 32}}
"""


def model(folder: Path) -> Path:
    """The tiny model, its data beside it."""
    from scripts.prepare_tiny import write

    write(folder, seed=0)
    return folder / "model"


def adapter(folder: Path, base: Path) -> Path:
    """An adapter's folder with one tensor, which is enough to be looked through."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": 1}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return folder


def config(file: Path, model: Path, runs: Path) -> Path:
    """A config of all three stages; the data lies in the folder `good` beside those of the attacks."""
    data = next(parent / "good" for parent in file.parents if (parent / "good").is_dir())
    file.write_text(CONFIG.format(model=model, runs=runs, data=data))
    return file


def run_folder(config: Path, *overrides: str) -> Path:
    """A run folder in which no stage has started."""
    return RunDir.create(load_config(config, overrides), ["rlhf", "run", str(config)]).path


def trainer(context: StageContext) -> "Trainer":
    """A trainer of transformers that has something to resume."""
    from torch import nn
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(output_dir=str(context.folder), report_to="none", use_cpu=True)
    return Trainer(nn.Linear(1, 1), arguments)


def sealed(folder: Path, write: Callable[[Path], None]) -> StageContext:
    """A stage whose newest checkpoint holds what `write` put there, its manifest in order."""
    checkpoints = CheckpointManager(folder / "checkpoints", keep=1)
    checkpoints.save(1, write)
    return StageContext(folder, tracker=None, checkpoints=checkpoints, seed=0)
