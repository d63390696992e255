"""The few verbs through which PPO drives a model it trains. Plain torch here: one process, any device."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from stages.loss_scale import LossScale
from stages.world import ALONE, World


class Engine(Protocol):
    """A model with its optimizer and schedule."""

    module: nn.Module
    loss_scale: LossScale | None
    """Of products in float16."""

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Add the gradient of one microbatch's share of the loss; `last`: the optimizer step has no further one."""

    def clip(self) -> float | None:
        """Scale the gradients down to the largest norm allowed; the norm before, NaN or infinite if one of them is.

        None where the loss scale may have made them infinite: it is lower now, and step() will change no weight.
        """

    def step(self) -> None:
        """Update, advance the schedule, clear gradients."""

    def discard(self) -> None:
        """Forget the gradients of the current optimizer step."""

    def learning_rate(self) -> float:
        """Learning rate of the next step."""

    def scale(self, factor: float) -> None:
        """Let all learning rates from the next step on be `factor` times those of the schedule."""

    def whole(self) -> AbstractContextManager:
        """Inside, every rank sees all weights of the module, which may be spread over the ranks otherwise."""

    def sampling(self) -> AbstractContextManager:
        """Inside, the module generates."""

    def state_dict(self) -> dict:
        """All that training changes, whole and equal on every rank, however it is spread meanwhile."""

    def load_state_dict(self, state: dict) -> None: ...


def linear_to_zero(total: int, warmup: int) -> Callable[[int], float]:
    """Factor of the learning rate before optimizer step k: warm-up, then a line that reaches 0 after `total`."""
    return lambda k: min(1.0, (k + 1) / (warmup + 1)) * max(0.0, (total - k) / total)


def constant(total: int, warmup: int) -> Callable[[int], float]:
    """Factor of the learning rate before optimizer step k: warm-up, then 1."""
    return lambda k: min(1.0, (k + 1) / (warmup + 1))


SCHEDULES = {"linear": linear_to_zero, "constant": constant}


class TorchEngine:
    """AdamW on one process."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        max_grad_norm: float,
        loss_scale: LossScale | None = None,
    ):
        self.module = module
        self.loss_scale = loss_scale
        self._optimizer = optimizer
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        self._base_rates = list(self._scheduler.base_lrs)
        self._max_grad_norm = max_grad_norm

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def backward(self, loss: Tensor, last: bool = True) -> None:
        (loss if self.loss_scale is None else self.loss_scale.scale(loss)).backward()

    def clip(self) -> float | None:
        norm = self._clipped()
        if self.loss_scale is None or not self.loss_scale.overflowed(math.isfinite(norm)):
            return norm
        self.discard()
        return None

    def _clipped(self) -> float:
        """The norm, without the loss scale; gradients that are whole are scaled down."""
        if self.loss_scale is not None:
            self.loss_scale.unscale(self.parameters)
        return float(nn.utils.clip_grad_norm_(self.parameters, self._max_grad_norm))

    def step(self) -> None:
        self._optimizer.step()
        self._scheduler.step()
        self.discard()

    def discard(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def learning_rate(self) -> float:
        return self._optimizer.param_groups[0]["lr"]

    def scale(self, factor: float) -> None:
        self._scheduler.base_lrs = [factor * rate for rate in self._base_rates]
        self._follow_schedule()

    def whole(self) -> AbstractContextManager:
        return nullcontext()

    def sampling(self) -> AbstractContextManager:
        return nullcontext()

    def state_dict(self) -> dict:
        """Trained weights, Adam moments and schedule."""
        scale = {} if self.loss_scale is None else {"loss_scale": self.loss_scale.state_dict()}
        return {
            "weights": self._weights(),
            "optimizer": self._moments(),
            "scheduler": {"last_epoch": self._scheduler.last_epoch},
            **scale,
        }

    def load_state_dict(self, state: dict) -> None:
        self._load_weights(state["weights"])
        self._load_moments(state["optimizer"])
        self._scheduler.last_epoch = state["scheduler"]["last_epoch"]
        if self.loss_scale is not None and "loss_scale" in state:  # another type may have been computed in before
            self.loss_scale.load_state_dict(state["loss_scale"])
        self._follow_schedule()

    def _follow_schedule(self) -> None:
        """Set the learning rates to those of the schedule at its place."""
        for group, base_lr, factor in zip(
            self._optimizer.param_groups, self._scheduler.base_lrs, self._scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base_lr * factor(self._scheduler.last_epoch)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that an optimizer changes, by name, in its order."""
        return [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.trained()}

    def _moments(self) -> dict:
        """Adam's state of each parameter by its number."""
        return {str(index): moment for index, moment in self._optimizer.state_dict()["state"].items()}

    def _load_weights(self, weights: dict[str, Tensor]) -> None:
        parameters = dict(self.module.named_parameters())
        with torch.no_grad():
            for name, weight in weights.items():
                parameters[name].copy_(weight)

    def _load_moments(self, found: dict) -> None:
        moments = {int(index): moment for index, moment in found.items()}
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})


@dataclass(frozen=True)
class TorchEngines:
    """Makes the engines of one stage: here of one process with plain torch."""

    world: World = ALONE
    compute: str = "float32"
    """Type of the models' products."""

    @property
    def splits_weights(self) -> bool:
        """Whether models exist in parts alone, so that roles cannot share the tensors of one base."""
        return False

    def trained(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        max_grad_norm: float,
    ) -> TorchEngine:
        """An engine for a model and its own optimizer over its trainable parameters."""
        return TorchEngine(module, optimizer, schedule, max_grad_norm, LossScale.of(self.compute))

    def frozen(self, module: nn.Module) -> nn.Module:
        """The module as it is used when nothing trains it."""
        return module
