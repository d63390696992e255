"""Optimizer steps of transformers' Trainer under DeepSpeed, which accelerate takes inside the backward pass."""

import math
from collections.abc import Callable
from typing import Any

from accelerate.utils.deepspeed import DeepSpeedEngineWrapper
from torch import Tensor, nn

from stages.loss_scale import LossScale


class DeepSpeedSteps(DeepSpeedEngineWrapper):
    """Leaves out a step whose gradient is not finite, on all ranks, and knows the norm of each.

    DeepSpeed does so itself under ZeRO 1 to 3; at stage 0 it would take the step.
    """

    def __init__(self, engine: Any, outputs_finite: Callable[[], bool], loss_scale: LossScale | None = None):
        super().__init__(engine)
        self._outputs_finite, self._loss_scale = outputs_finite, loss_scale
        self.norm = 0.0
        """Of the last step's gradient over all ranks, before clipping; NaN when the step was left out."""

    def backward(self, loss: Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        """Add a gradient, and step when it is the last of a batch."""
        if sync_gradients and not self._outputs_finite():
            loss = loss * math.nan  # reaches the gradient of every rank, so that all leave the step out
        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        backward_scaled(self.engine, loss, self._loss_scale, **kwargs)
        if sync_gradients:
            self.norm = self._spread_step() if self.engine.zero_optimization() else self._whole_step()

    def get_global_grad_norm(self) -> float:
        return self.norm

    def _spread_step(self) -> float:
        self.engine.step()
        left_out = self.engine.optimizer.overflow
        self.engine.optimizer.overflow = False  # else accelerate would hold back the schedule
        return math.nan if left_out else float(self.engine.get_global_grad_norm())

    def _whole_step(self) -> float:
        if self._loss_scale is not None:
            self._loss_scale.unscale(self.engine.module.parameters())
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            self.engine.zero_grad()
            return math.nan
        self.engine.step()
        return norm


def backward_scaled(engine: Any, loss: Tensor, loss_scale: LossScale | None, **kwargs: Any) -> None:
    """DeepSpeed's backward pass; under ZeRO 1 to 3 its optimizer takes the scale off again, else the caller has to."""
    if loss_scale is not None and engine.zero_optimization():
        engine.optimizer.override_loss_scale(loss_scale.value)
    elif loss_scale is not None:
        loss = loss_scale.scale(loss)
    engine.backward(loss, **kwargs)
