"""transformers' own Trainer on a small model, to be killed, damaged and resumed by trainer_comparison.

    python -m scripts.benchmark.plain_trainer FOLDER STEPS            # from the start, a checkpoint at every step
    python -m scripts.benchmark.plain_trainer FOLDER STEPS --resume   # from what get_last_checkpoint finds
    ... --sealed                                                      # with what this project's stages add to it

It leaves outcome.json: where it went on from, the digest of its weights, its log.
"""

import argparse
import json
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from pipeline.checkpoints import CheckpointManager
from pipeline.hashing import files_of, sha256_file
from stages.base import StageContext
from stages.models.config import ModelConfig
from stages.sft.config import SFTConfig
from stages.supervision import Supervision

torch.set_num_threads(1)


class RandomText(Dataset):
    """Twelve rows of ids."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(512, (16,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


class NoTracker:
    """A stage's tracker that keeps nothing."""

    def log(self, metrics: object, step: int) -> None: ...

    def samples(self, rows: object, step: int) -> None: ...


def trainer(folder: Path, steps: int, keep: int) -> Trainer:
    """A GPT-2 of 5 million weights with dropout: 60 MB a checkpoint."""
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=512, n_positions=32, n_embd=320, n_layer=4, n_head=4)
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        save_steps=1,
        save_total_limit=keep,
        logging_steps=2,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    return Trainer(GPT2LMHeadModel(shape), arguments, train_dataset=RandomText())


def _supervised(options: argparse.Namespace) -> tuple[Trainer, str | None]:
    """The same training under what our stages add; where it went on from."""
    store = CheckpointManager(options.folder / "checkpoints", options.keep)
    found = store.latest()
    context, model = StageContext(options.folder, NoTracker(), store, 0), ModelConfig(path="random weights")
    supervision = Supervision(context, "sft", SFTConfig(), model)
    training = trainer(options.folder / ".trainer", options.steps, options.keep)
    for callback in supervision.callbacks({}, ()):
        training.add_callback(callback)
    supervision.train(training)
    return training, str(found[1]) if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--sealed", action="store_true")
    parser.add_argument("--keep", type=int, default=2)
    options = parser.parse_args()
    if options.sealed:
        training, last = _supervised(options)
    else:
        training = trainer(options.folder, options.steps, options.keep)
        last = get_last_checkpoint(options.folder) if options.resume else None
        training.train(resume_from_checkpoint=last)
    final = options.folder / "final"
    training.save_model(str(final))
    weights = sha256_file(files_of(final)["model.safetensors"])
    log = [{k: v for k, v in row.items() if k in ("step", "loss", "grad_norm")} for row in training.state.log_history]
    (options.folder / "outcome.json").write_text(json.dumps({"from": last, "weights": weights, "log": log[:-1]}))


if __name__ == "__main__":
    main()
