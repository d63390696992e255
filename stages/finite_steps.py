"""Non-finite numbers in transformers' Trainer: found in their step, before the optimizer, whatever is logged when.

By itself Trainer goes on with them, and by default logs a loss of 0 in their place.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.base import StageContext
from stages.divergence import NonFinite, Skips, dump
from stages.loss_scale import LossScale


class FiniteSteps(TrainerCallback):
    """Ends the training, or leaves out the optimizer step, when a log-probability, score or gradient is not finite."""

    def __init__(self, context: StageContext, stage: str, skips: Skips, loss_scale: LossScale | None = None):
        self._context, self._stage, self._skips, self._loss_scale = context, stage, skips, loss_scale
        self._microbatches: list[dict[str, Tensor]] = []
        self.norm: Callable[[], float] | None = None
        """Gradient norm of the step that DeepSpeed has just taken, NaN when it left it out; None without DeepSpeed."""

    def follow(self, model: nn.Module) -> None:
        """Remember what the microbatches of each training step put into `model` and got from it."""
        model.register_forward_hook(self._remember, with_kwargs=True)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._microbatches.clear()

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        processing_class: PreTrainedTokenizerBase,
        **kwargs: Any,
    ) -> None:
        finite = self._all_finite(model)
        if self._overflowed(finite):
            self._skips.overflows += 1
            _forget_gradients(model)
            return
        if finite:
            return
        rows = list(self._rows(processing_class))
        what, worst, rank = self._worst(rows)
        where = f" in rows {worst[:8]} of the batch" if worst else ""
        whose = f" of rank {rank}" if where and not self._context.world.alone else ""
        step = state.global_step + 1
        error = NonFinite(
            f"[TRAIN01] {self._stage} step {step}: {what} is not finite{where}{whose}",
            f"lower {self._stage}.learning_rate"
            + (", or set model.compute: bfloat16 or float32" if self._loss_scale else ""),
            what,
            {f"{i}.{name}": t for i, part in enumerate(self._microbatches) for name, t in part.items()},
        )
        folder = self._context.folder / "diverged" / self._name(step)
        self._skips.skip(step, error, dump(folder, what, error.tensors, rows))
        _forget_gradients(model)

    def outputs_finite(self) -> bool:
        """Whether all that the model has said in this training step, on this rank, is finite."""
        return all(bool(tensor.isfinite().all()) for _, tensor in self._outputs())

    def _overflowed(self, finite: bool) -> bool:
        """Whether the loss scale made gradients infinite of outputs that are finite on all ranks; it is lower then."""
        if self._loss_scale is None:
            return False
        if not finite and not all(self._context.world.gather_objects(self.outputs_finite())):
            return False
        return self._loss_scale.overflowed(finite)

    def _all_finite(self, model: nn.Module) -> bool:
        if self.norm is not None:  # an output that is not finite was made to show in it
            return math.isfinite(self.norm())
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        outputs = [tensor for _, tensor in self._outputs()]
        return bool(torch.stack([t.isfinite().all() for t in (*gradients, *outputs)]).all())

    def _outputs(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, m[name]) for m in self._microbatches for name in ("logprobs", "scores") if name in m)

    def _worst(self, rows: list[dict[str, Any]]) -> tuple[str, list[int], int]:
        """What is not finite, in which rows, on the first rank that has such an output; all ranks say the same."""
        bad = [name for name, tensor in self._outputs() if not tensor.isfinite().all()]
        own = (bad[0], [row["row"] for row in rows if not row["finite"]]) if bad else None
        found = self._context.world.gather_objects(own)
        rank = next((rank for rank, said in enumerate(found) if said), 0)
        return (*(found[rank] or ("a gradient", [])), rank)

    def _name(self, step: int) -> str:
        world = self._context.world
        return f"step-{step:06d}" if world.main else f"step-{step:06d}-rank-{world.rank}"

    def _remember(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if not model.training:
            return
        given = {name: value for name, value in kwargs.items() if isinstance(value, Tensor)}
        logprobs = getattr(output, "log_probs", None)
        found = {"scores": output.logits} if logprobs is None else {"logprobs": logprobs}
        self._microbatches.append(given | {name: value.detach() for name, value in found.items()})

    def _rows(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, Any]]:
        """Every row of the batch as text, and whether what the model said of it was finite."""
        number = 0
        for part in self._microbatches:
            said = part.get("logprobs", part.get("scores"))
            attended = part.get("attention_mask", torch.ones_like(part["input_ids"])).bool()
            finite = said.reshape(len(said), -1).isfinite().all(1)
            for ids, mask, fine in zip(part["input_ids"], attended, finite, strict=True):
                yield {"row": number, "finite": bool(fine), "text": tokenizer.decode(ids[mask])}
                number += 1


def _forget_gradients(model: nn.Module) -> None:
    """The optimizer leaves what has no gradient as it is."""
    for parameter in model.parameters():
        parameter.grad = None
