"""What the two stages on TRL's trainers share: arguments and logging."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from stages.base import Diverged, StageContext
from stages.divergence import Skips, named_tensors, require_finite_state, trained
from stages.exact_resume import ExactResume
from stages.finite_steps import FiniteSteps
from stages.models.config import ModelConfig
from stages.models.torch_files import require_tensors_only
from stages.progress import Progress
from stages.reward_model.config import RewardModelConfig
from stages.sft.config import SFTConfig

SKIPPED = "skipped.json"


def training_arguments(
    config: SFTConfig | RewardModelConfig, model: ModelConfig, context: StageContext
) -> dict[str, Any]:
    """The arguments of transformers' Trainer that follow from a stage's section."""
    accumulation, rest = divmod(config.batch_size, config.microbatch_size)
    micro = config.microbatch_size if accumulation and not rest else config.batch_size
    return {
        "output_dir": str(context.folder / ".trainer"),
        "seed": context.seed,
        "data_seed": context.seed,
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": config.batch_size // micro,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_schedule,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "optim": "adamw_torch",
        "bf16": model.compute == "bfloat16",
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
        self, context: StageContext, stage: str, skips: Skips, names: Mapping[str, str], shown: tuple[str, ...]
    ):
        self._context, self._stage, self._skips, self._names, self._shown = context, stage, skips, names, shown
        self._told = 0
        self._progress: Progress | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._told = len(self._skips.steps)
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
        if bad and len(self._skips.steps) == self._told:
            raise Diverged(
                f"[TRAIN01] {self._stage} step {state.global_step}: {bad[0]} is not finite; "
                f"fix: lower {self._stage}.learning_rate"
            )
        metrics = {name: value for name, value in metrics.items() if name not in bad}  # of a step that was left out
        if self._skips.possible:
            metrics[f"{self._stage}/skipped"] = self._told = len(self._skips.steps)
        self._context.tracker.log(metrics, state.global_step)
        if self._progress is not None:
            shown = {k.partition("/")[2]: v for k, v in metrics.items() if k in self._shown}
            self._progress.show(state.global_step, shown)


def silence(trainer: Trainer) -> None:
    """Leave the printing to our own callback."""
    trainer.remove_callback(PrinterCallback)


class SealedCheckpoints(TrainerCallback):
    """Hands every checkpoint of the trainer to our own store, which seals it before it counts."""

    def __init__(self, context: StageContext, stage: str, skips: Skips):
        self._context, self._stage, self._skips = context, stage, skips

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        shutil.rmtree(args.output_dir, ignore_errors=True)  # what a killed attempt left half written

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        **kwargs: Any,
    ) -> None:
        self._context.pulse.enter("saving")
        written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        moments = named_tensors(optimizer.state_dict()["state"], "optimizer")
        try:
            require_finite_state(f"{self._stage} step {state.global_step}", chain(trained(model), moments))
            self._context.checkpoints.save(state.global_step, partial(self._copy, written))
        finally:
            shutil.rmtree(written)

    def _copy(self, written: Path, folder: Path) -> None:
        unpickled = shutil.ignore_patterns("training_args.bin")  # objects, which nothing here reads again
        shutil.copytree(written, folder, dirs_exist_ok=True, ignore=unpickled, copy_function=os.rename)
        if self._skips.possible:
            (folder / SKIPPED).write_text(json.dumps(self._skips.steps))


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


class Supervision:
    """All that both stages add to a trainer of TRL."""

    def __init__(self, context: StageContext, stage: str, config: SFTConfig | RewardModelConfig):
        self._context, self._stage = context, stage
        self._skips = Skips(config.on_nonfinite, config.max_skipped_batches)
        self._finite = FiniteSteps(context, stage, self._skips)

    def callbacks(self, names: Mapping[str, str], shown: tuple[str, ...]) -> list[TrainerCallback]:
        """To be given to the trainer; `names` are our names for its metrics, `shown` those of the progress line."""
        context, stage, skips = self._context, self._stage, self._skips
        tracked = TrackerCallback(context, stage, skips, names, shown)
        sealed = SealedCheckpoints(context, stage, skips)
        return [tracked, self._finite, ConfigDecides(), StopWhenAsked(context), Phases(context), sealed]

    def train(self, trainer: Trainer) -> None:
        """Train to the end, from the newest sealed checkpoint if there is one.

        Raises Interrupted where it was asked to stop, with the state on disk, Diverged, and InputError as
        `require_tensors_only`.
        """
        context = self._context
        trainer.add_callback(ExactResume(trainer, context.seed))  # last: it looks at whether the others save
        self._finite.follow(trainer.model)
        found = context.checkpoints.latest()
        context.stop.follow(found[0] if found else 0)
        if found is None:
            trainer.train()
        else:
            require_tensors_only(found[1])
            print(f"resuming from {found[1]}", flush=True)
            if (found[1] / SKIPPED).is_file():
                self._skips.steps = json.loads((found[1] / SKIPPED).read_text())
            _resume(trainer, found[1])
        if trainer.state.global_step < trainer.state.max_steps:
            context.stop.follow(trainer.state.global_step)


def _resume(trainer: Trainer, checkpoint: Path) -> None:
    """Go on from a checkpoint; from that of the last step there is nothing to do, where Trainer would do one more."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if state.global_step < _total_steps(trainer):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    else:
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = state


def _total_steps(trainer: Trainer) -> int:
    """Optimizer steps that the arguments ask for, as Trainer counts them."""
    args = trainer.args
    if args.max_steps > 0:
        return args.max_steps
    per_epoch = max(1, math.ceil(len(trainer.get_train_dataloader()) / args.gradient_accumulation_steps))
    return math.ceil(args.num_train_epochs * per_epoch)
