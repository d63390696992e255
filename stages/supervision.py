"""All that both stages on TRL's trainers add to one: sealed checkpoints, resuming, ranks, and the callbacks."""

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
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.base import StageContext
from stages.batch_split import split_batch
from stages.deepspeed_config import DeepSpeedConfig
from stages.deepspeed_json import deepspeed_json
from stages.divergence import Skips, named_tensors, require_finite_state, trained
from stages.exact_resume import ExactResume
from stages.finite_steps import FiniteSteps
from stages.hf_trainer import ConfigDecides, Phases, StopWhenAsked, TrackerCallback, silence, training_arguments
from stages.loss_scale import LossScale
from stages.models.config import ModelConfig
from stages.models.precision import autocast_forward
from stages.models.torch_files import require_tensors_only
from stages.ranked_trainer import Ranked, RankedTrainer
from stages.trained_state import STATE, writers
from stages.trainer_config import TrainerConfig

SKIPPED = "skipped.json"


class SealedCheckpoints(TrainerCallback):
    """Hands every checkpoint of the trainer to our own store, which seals it before it counts."""

    def __init__(self, context: StageContext, stage: str, skips: Skips):
        self._context, self._stage, self._skips = context, stage, skips

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._context.world.main:
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
        try:
            if not args.deepspeed:  # else it was looked at while it was gathered
                moments = named_tensors(optimizer.state_dict()["state"], "optimizer")
                require_finite_state(f"{self._stage} step {state.global_step}", chain(trained(model), moments))
            self._context.checkpoints.save(state.global_step, partial(self._copy, written))
        finally:
            if self._context.world.main:
                shutil.rmtree(written)

    def _copy(self, written: Path, folder: Path) -> None:
        unpickled = shutil.ignore_patterns("training_args.bin")  # objects, which nothing here reads again
        shutil.copytree(written, folder, dirs_exist_ok=True, ignore=unpickled, copy_function=os.rename)
        if self._skips.possible:
            (folder / SKIPPED).write_text(json.dumps(self._skips.steps))


class Supervision:
    """One stage's additions to its trainer.

    Raises InputError BATCH02 when the ranks cannot share a batch evenly.
    """

    def __init__(
        self,
        context: StageContext,
        stage: str,
        config: TrainerConfig,
        model: ModelConfig,
        deepspeed: DeepSpeedConfig | None = None,
    ):
        self._context, self._stage, self._config, self._compute = context, stage, config, model.compute
        self._split = split_batch(stage, config.batch_size, config.microbatch_size, context.world.size)
        self._skips = Skips(config.on_nonfinite, config.max_skipped_batches)
        self._loss_scale = LossScale.of(model.compute)
        self._finite = FiniteSteps(context, stage, self._skips, self._loss_scale)
        self._deepspeed: dict[str, Any] | None = None
        if deepspeed is not None or not context.world.alone:
            from stages.deepspeed_start import join_ranks

            join_ranks(context.world.timeout_s)
            self._deepspeed = deepspeed_json(deepspeed, self._split, config.max_grad_norm)

    def arguments(self) -> dict[str, Any]:
        """Those of transformers' Trainer."""
        return training_arguments(self._config, self._context, self._split, self._deepspeed)

    def callbacks(self, names: Mapping[str, str], shown: tuple[str, ...]) -> list[TrainerCallback]:
        """To be given to the trainer; `names` are our names for its metrics, `shown` those of the progress line."""
        context, stage, skips = self._context, self._stage, self._skips
        tracked = TrackerCallback(context, stage, skips, names, shown, self._loss_scale)
        sealed = SealedCheckpoints(context, stage, skips)
        return [tracked, self._finite, ConfigDecides(), StopWhenAsked(context), Phases(context), sealed]

    def take(self, trainer: RankedTrainer) -> None:
        """Prepare a new trainer."""
        silence(trainer)
        autocast_forward(trainer.model, self._compute, trainer.args.device)
        trainer.loss_scale = self._loss_scale
        if self._deepspeed is None:
            return
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()  # the arguments have set it; nothing is split before the training begins
        config = self._config
        rows = min(config.microbatch_size, config.batch_size)
        trainer.ranked = Ranked(self._context.world, self._split, rows, config.group_by_length)
        trainer.outputs_finite = self._finite.outputs_finite
        self._finite.norm = lambda: trainer.accelerator.deepspeed_engine_wrapped.norm

    def train(self, trainer: RankedTrainer) -> None:
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
            self._tell_other_ranks(found[1])
            if (found[1] / SKIPPED).is_file():
                self._skips.steps = json.loads((found[1] / SKIPPED).read_text())
            _resume(trainer, found[1])
        if trainer.state.global_step < trainer.state.max_steps:
            context.stop.follow(trainer.state.global_step)

    def _tell_other_ranks(self, checkpoint: Path) -> None:
        before, now = writers(checkpoint) if (checkpoint / STATE).is_file() else 1, self._context.world.size
        if before != now:
            print(
                f"{self._stage}: saved by {before} {_ranks(before)}, goes on with {now}: weights, optimizer, schedule "
                "and position are the same, sums are rounded otherwise",
                flush=True,
            )


def _ranks(count: int) -> str:
    return "rank" if count == 1 else "ranks"


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
