"""transformers' Trainer over several ranks under DeepSpeed: what it would do otherwise than on one, or not exactly.

Rows are dealt by us (stages/dealing.py), optimizer steps are looked at before they count, evaluation weighs every row
once, and the state is written whole (stages/trained_state.py). Without `ranked` all is transformers' own.
"""

import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from transformers.trainer_utils import EvalLoopOutput

from stages import trained_state
from stages.batch_split import BatchSplit
from stages.dealing import WEIGHT, EvaluationBatches, TrainingBatches, epoch_order, loader
from stages.loss_scale import LossScale
from stages.trained_state import STATE, StoredMoments
from stages.world import World

_OPTIMIZER, _SCHEDULER, _LOSS_SCALE = "optimizer.pt", "scheduler.pt", "scaler.pt"


@dataclass(frozen=True)
class Ranked:
    """How a stage trains over ranks."""

    world: World
    split: BatchSplit
    evaluation_size: int
    """Rows of a forward pass in evaluation; the same for any number of ranks."""
    grouped: bool
    """Whether rows of similar length are put into one batch."""


class RankedTrainer(Trainer, ABC):
    """Mixin before a trainer of TRL."""

    ranked: Ranked | None = None
    loss_scale: LossScale | None = None
    outputs_finite: Callable[[], bool] = staticmethod(lambda: True)
    """Whether all that the model has said in this training step, on this rank, is finite."""

    @abstractmethod
    def collate_weighted(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of rows with their weights, of which those of weight 0 must not count."""

    def get_train_dataloader(self) -> DataLoader:
        if self.ranked is None:
            return super().get_train_dataloader()
        split, rows = self.ranked.split, self.train_dataset
        order = epoch_order(rows, self.args.data_seed, split.batch, self.ranked.grouped)
        return loader(rows, TrainingBatches(order, len(rows), split, self.ranked.world.rank), self.collate_weighted)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        if self.ranked is None:
            return super().get_eval_dataloader(eval_dataset)
        rows, world = eval_dataset or self.eval_dataset, self.ranked.world
        batches = EvaluationBatches(len(rows), self.ranked.evaluation_size, world.size, world.rank)
        return loader(rows, batches, self.collate_weighted)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with self._split_weights():
            return super().train(*args, **kwargs)

    @contextmanager
    def _split_weights(self) -> Iterator[None]:
        """Inside, transformers and TRL know of ZeRO 3; else they would split every model that is loaded afterwards."""
        if self.ranked is not None:
            set_hf_deepspeed_config(self.args.hf_deepspeed_config)
        try:
            yield
        finally:
            unset_hf_deepspeed_config()

    @torch.no_grad()
    def evaluation_loop(
        self, dataloader: DataLoader, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Mean over the rows of their batches' losses, as on one rank; also before a model is under DeepSpeed."""
        if self.ranked is None:
            return super().evaluation_loop(
                dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
        inside = self.is_in_train or self.deepspeed is None
        with nullcontext() if inside else self._split_weights():
            mean, count = self._mean_loss(dataloader)
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_loss": mean}, count)

    def _mean_loss(self, dataloader: DataLoader) -> tuple[float, int]:
        self.model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        self._move_model_to_device(self.model, self.args.device)
        for inputs in dataloader:
            rows = int((inputs[WEIGHT] > 0).sum())
            loss, *_ = self.prediction_step(self.model, inputs, prediction_loss_only=True)
            total += torch.tensor([rows * float(loss) if rows else 0.0, rows], dtype=torch.float64).to(total)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        weighted, count = self.ranked.world.sum(total).tolist()
        return (weighted / count if count else math.nan), int(count)

    def _prepare_for_training(self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None):
        if self.ranked is None:
            prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
            self.accelerator.scaler = self.loss_scale  # it scales the loss there; its optimizer does not know of it
            return prepared
        from stages.deepspeed_start import limit_waiting
        from stages.deepspeed_steps import DeepSpeedSteps

        if resume_from_checkpoint is not None:  # while every rank still has whole weights
            self._load_from_checkpoint(resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        assert self.accelerator.num_processes == self.ranked.world.size
        limit_waiting(self.ranked.world.timeout_s)
        self.accelerator.deepspeed_engine_wrapped = DeepSpeedSteps(self.deepspeed, self.outputs_finite, self.loss_scale)
        if resume_from_checkpoint is not None:
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._load_scaler(resume_from_checkpoint)
        return prepared

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        if self.ranked is None and self.loss_scale is not None:
            self.loss_scale.unscale(model.parameters())
        return super()._clip_grad_norm(model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if (Path(resume_from_checkpoint) / STATE).is_file():
            trained_state.load_weights(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or (self.ranked is None and not (Path(checkpoint) / STATE).is_file()):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        trained_state.load_moments(self.model, self._inner_optimizer, self._moments(Path(checkpoint)))
        schedule = torch.load(Path(checkpoint) / _SCHEDULER, weights_only=True)
        # Its rates follow from the step (ConfigDecides); DeepSpeed leaves out groups without parameters.
        self.lr_scheduler.last_epoch, self.lr_scheduler._step_count = schedule["last_epoch"], schedule["_step_count"]

    def _moments(self, checkpoint: Path) -> Mapping[str, Mapping[str, Tensor]]:
        if (checkpoint / STATE).is_file():
            return StoredMoments(checkpoint)
        decayed = set(self.get_decay_parameter_names(self.model))
        trained = [name for name, _ in trained_state.trained_parameters(self.model)]
        in_order = [n for n in trained if n in decayed] + [n for n in trained if n not in decayed]
        return trained_state.moments_of_plain(checkpoint / _OPTIMIZER, in_order)

    @property
    def _inner_optimizer(self) -> Any:
        """torch's AdamW, or DeepSpeed's optimizer of ZeRO 1 to 3 around one."""
        return self.optimizer.optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.ranked is None:
            super().save_model(output_dir, _internal_call)
        elif self.ranked.world.main:  # the weights are in the state
            Path(output_dir).mkdir(parents=True, exist_ok=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.ranked is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        world, what = self.ranked.world, f"step {self.state.global_step}"
        state = trained_state.gather_state(what, self.model, self._inner_optimizer, keep=world.main)
        if world.main:
            trained_state.write_state(state, Path(output_dir), world.size)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / _SCHEDULER)

    def _save_scaler(self, output_dir: str) -> None:
        if self.loss_scale is not None and self.args.should_save:
            torch.save(self.loss_scale.state_dict(), Path(output_dir) / _LOSS_SCALE)

    def _load_scaler(self, checkpoint: str) -> None:
        file = Path(checkpoint) / _LOSS_SCALE
        if self.loss_scale is not None and file.is_file():  # another type may have been computed in before
            self.loss_scale.load_state_dict(torch.load(file, weights_only=True))

    def _save_rng_state(self, output_dir: str) -> None:
        """The generators of every rank, written by rank 0, whose folder is the one that is sealed."""
        if self.ranked is None:
            super()._save_rng_state(output_dir)
            return
        with tempfile.TemporaryDirectory() as own:
            super()._save_rng_state(own)
            file = next(Path(own).iterdir())
            files = self.ranked.world.gather_objects((file.name, file.read_bytes()))
        for name, content in files if self.ranked.world.main else ():
            (Path(output_dir) / name).write_bytes(content)
