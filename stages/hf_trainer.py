"""What the two stages on TRL's trainers share: arguments, logging, publishing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from stages.base import Diverged, StageContext
from stages.models.config import ModelConfig
from stages.progress import Progress
from stages.reward_model.config import RewardModelConfig
from stages.sft.config import SFTConfig


def training_arguments(config: SFTConfig | RewardModelConfig, model: ModelConfig, context: StageContext, rows: int) -> dict[str, Any]:
    """The arguments of transformers' Trainer that follow from a stage's section."""
    accumulation, rest = divmod(config.batch_size, config.microbatch_size)
    micro = config.microbatch_size if accumulation and not rest else config.batch_size
    steps_per_epoch = max(1, -(-rows // config.batch_size))
    return {
        "output_dir": str(context.folder / "checkpoints"), "seed": context.seed, "data_seed": context.seed,
        "per_device_train_batch_size": micro, "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": config.batch_size // micro,
        "num_train_epochs": config.epochs, "max_steps": config.max_steps or round(config.epochs * steps_per_epoch),
        "learning_rate": config.learning_rate, "lr_scheduler_type": config.lr_schedule, "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay, "max_grad_norm": config.max_grad_norm, "optim": "adamw_torch",
        "bf16": model.compute == "bfloat16", "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": config.gradient_checkpointing,
        "logging_steps": config.log_every, "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if config.eval_every else "no", "eval_steps": config.eval_every or None,
        "save_strategy": "steps" if config.checkpoint_every else "no", "save_steps": config.checkpoint_every or 500,
        "save_total_limit": config.keep_checkpoints, "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False,
    }


class TrackerCallback(TrainerCallback):
    """Forwards the trainer's log to our tracker under our names, and stops at the first non-finite loss."""

    def __init__(self, context: StageContext, stage: str, names: Mapping[str, str], shown: tuple[str, ...]):
        self._context, self._stage, self._names, self._shown = context, stage, names, shown
        self._progress: Progress | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress = Progress(self._stage, state.max_steps, state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        metrics = {self._names[k]: float(v) for k, v in (logs or {}).items() if k in self._names}
        for name in ("loss", "grad_norm"):
            value = (logs or {}).get(name)
            if value is not None and not torch.isfinite(torch.tensor(float(value))):
                raise Diverged(f"[TRAIN01] {self._stage} step {state.global_step}: {name} is {value}; fix: lower {self._stage}.learning_rate")
        if not metrics:
            return
        self._context.tracker.log(metrics, state.global_step)
        if self._progress is not None:
            shown = {k.partition("/")[2]: v for k, v in metrics.items() if k in self._shown}
            self._progress.show(state.global_step, shown)


def silence(trainer: Trainer) -> None:
    """Leave the printing to our own callback."""
    trainer.remove_callback(PrinterCallback)


def checkpoint_to_resume(context: StageContext) -> str | None:
    """The trainer's newest own checkpoint, if the stage was interrupted."""
    folder = context.folder / "checkpoints"
    found = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if found:
        print(f"resuming from {found}", flush=True)
    return found


def publish(model: Any, tokenizer: PreTrainedTokenizerBase, final: Path) -> None:
    """Write a stage's model so that plain transformers (and peft) load it."""
    model.save_pretrained(final)
    tokenizer.save_pretrained(final)
    (final / "README.md").unlink(missing_ok=True)  # PEFT's model card names a path and says nothing


def is_adapter(final: Path) -> bool:
    """Whether a folder holds an adapter rather than whole weights."""
    return (final / "adapter_config.json").is_file()
