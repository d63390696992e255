"""Non-finite numbers in transformers' Trainer: found in their step, before the optimizer, whatever is logged when.

By itself Trainer goes on with them, and by default logs a loss of 0 in their place.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.base import StageContext
from stages.divergence import NonFinite, Skips, dump


class FiniteSteps(TrainerCallback):
    """Ends the training, or leaves out the optimizer step, when a log-probability, score or gradient is not finite."""

    def __init__(self, context: StageContext, stage: str, skips: Skips):
        self._context, self._stage, self._skips = context, stage, skips
        self._microbatches: list[dict[str, Tensor]] = []

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
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        outputs = [(name, m[name]) for m in self._microbatches for name in ("logprobs", "scores") if name in m]
        if torch.stack([t.isfinite().all() for t in (*gradients, *(t for _, t in outputs))]).all():
            return
        bad = [name for name, tensor in outputs if not tensor.isfinite().all()]
        step, what = state.global_step + 1, bad[0] if bad else "a gradient"
        rows = list(self._rows(processing_class))
        worst = [row["row"] for row in rows if not row["finite"]]
        where = f" in rows {worst[:8]} of the batch" if worst else ""
        error = NonFinite(
            f"[TRAIN01] {self._stage} step {step}: {what} is not finite{where}",
            f"lower {self._stage}.learning_rate",
            what,
            {f"{i}.{name}": t for i, part in enumerate(self._microbatches) for name, t in part.items()},
        )
        folder = self._context.folder / "diverged" / f"step-{step:06d}"
        self._skips.skip(step, error, dump(folder, what, error.tensors, rows))
        for parameter in model.parameters():
            parameter.grad = None  # the optimizer leaves what has no gradient as it is

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
