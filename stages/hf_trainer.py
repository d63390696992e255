"""What the two stages on TRL's trainers share: arguments, and callbacks that look and tell."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from stages.base import Diverged, StageContext
from stages.batch_split import BatchSplit
from stages.divergence import Skips
from stages.loss_scale import LossScale
from stages.progress import Progress
from stages.trainer_config import TrainerConfig


def training_arguments(
    config: TrainerConfig,
    context: StageContext,
    split: BatchSplit,
    deepspeed: dict[str, Any] | None,
) -> dict[str, Any]:
    """The arguments of transformers' Trainer that follow from a stage's section; `deepspeed` is DeepSpeed's config."""
    return {
        "output_dir": str(context.folder / ".trainer"),
        "seed": context.seed,
        "data_seed": context.seed,
        "per_device_train_batch_size": split.microbatch,
        "per_device_eval_batch_size": split.microbatch,
        "gradient_accumulation_steps": split.accumulation,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_schedule,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "optim": "adamw_torch",
        "bf16": False,  # TRL would switch it on; the model itself computes in model.compute (autocast_forward)
        "deepspeed": deepspeed,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": config.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},  # reentrant: no gradient below frozen embeddings
        "remove_unused_columns": False,  # the collators read what they need; the sampler reads `length`
        "train_sampling_strategy": "group_by_length" if config.group_by_length else "random",
        "logging_steps": config.log_every,
        "logging_nan_inf_filter": config.on_nonfinite == "rollback",  # FiniteSteps has seen it; keep it out of means
        "eval_strategy": "steps" if config.eval_every else "no",
        "eval_steps": config.eval_every or None,
        "save_strategy": "steps" if config.checkpoint_every else "no",
        "save_steps": config.checkpoint_every or 500,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


class TrackerCallback(TrainerCallback):
    """Forwards the trainer's log to our tracker under our names; ends the training at a metric that is not finite."""

    def __init__(
        self,
        context: StageContext,
        stage: str,
        skips: Skips,
        names: Mapping[str, str],
        shown: tuple[str, ...],
        loss_scale: LossScale | None = None,
    ):
        self._context, self._stage, self._skips, self._names, self._shown = context, stage, skips, names, shown
        self._loss_scale = loss_scale
        self._told = 0
        self._progress: Progress | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._told = self._skips.left_out
        self._progress = Progress(self._stage, state.max_steps, state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        metrics = {self._names[k]: float(v) for k, v in (logs or {}).items() if k in self._names}
        if not metrics:
            return
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad and self._skips.left_out == self._told:
            raise Diverged(
                f"[TRAIN01] {self._stage} step {state.global_step}: {bad[0]} is not finite; "
                f"fix: lower {self._stage}.learning_rate"
            )
        metrics = {name: value for name, value in metrics.items() if name not in bad}  # of a step that was left out
        self._told = self._skips.left_out
        if self._skips.possible:
            metrics[f"{self._stage}/skipped"] = len(self._skips.steps)
        if self._loss_scale is not None and f"{self._stage}/loss" in metrics:
            metrics[f"{self._stage}/loss_scale"] = self._loss_scale.value
        self._context.tracker.log(metrics, state.global_step)
        if self._progress is not None:
            shown = {k.partition("/")[2]: v for k, v in metrics.items() if k in self._shown}
            self._progress.show(state.global_step, shown)


def silence(trainer: Trainer) -> None:
    """Leave the printing to our own callback."""
    trainer.remove_callback(PrinterCallback)


class Phases(TrainerCallback):
    """Tells what the trainer is at."""

    def __init__(self, context: StageContext):
        self._pulse = context.pulse

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._pulse.enter("training", state.global_step + 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_evaluate or control.should_save:
            self._pulse.enter("evaluation" if control.should_evaluate else "saving")

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._pulse.enter("evaluation")


class StopWhenAsked(TrainerCallback):
    """Saves and ends the training at the end of the step in which it was asked to."""

    def __init__(self, context: StageContext):
        self._stop = context.stop

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._stop.asked:
            control.should_save = control.should_training_stop = True


class ConfigDecides(TrainerCallback):
    """After a resume, what the config says counts, also where the trainer has just restored an earlier value."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LambdaLR,
        **kwargs: Any,
    ) -> None:
        state.compute_steps(args, state.max_steps)
        optimizer.param_groups[0]["weight_decay"] = args.weight_decay  # the second group, of norms and biases, has none
        lr_scheduler.base_lrs = [args.learning_rate] * len(lr_scheduler.base_lrs)
        for group, factor in zip(optimizer.param_groups, lr_scheduler.lr_lambdas, strict=True):
            group["initial_lr"], group["lr"] = args.learning_rate, args.learning_rate * factor(lr_scheduler.last_epoch)
        lr_scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]  # what the log shows
