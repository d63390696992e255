"""The few verbs through which PPO drives a model it trains. Plain torch here: one process, any device."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn


class Engine(Protocol):
    """A model with its optimizer and schedule."""

    module: nn.Module

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one microbatch's share of the loss."""

    def clip(self) -> float:
        """Scale the gradients down to the largest norm allowed; the norm before, NaN or infinite if one of them is."""

    def step(self) -> None:
        """Update, advance the schedule, clear gradients."""

    def discard(self) -> None:
        """Forget the gradients of the current optimizer step."""

    def learning_rate(self) -> float:
        """Learning rate of the next step."""

    def state_dict(self) -> dict: ...

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
    ):
        self.module = module
        self._optimizer = optimizer
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        self._max_grad_norm = max_grad_norm

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip(self) -> float:
        return float(nn.utils.clip_grad_norm_(self.parameters, self._max_grad_norm))

    def step(self) -> None:
        self._optimizer.step()
        self._scheduler.step()
        self.discard()

    def discard(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def learning_rate(self) -> float:
        return self._optimizer.param_groups[0]["lr"]

    def state_dict(self) -> dict:
        """Trained weights, Adam moments and schedule."""
        names = {n for n, p in self.module.named_parameters() if p.requires_grad}
        return {
            "weights": {n: p.detach() for n, p in self.module.named_parameters() if n in names},
            "optimizer": {str(index): moment for index, moment in self._optimizer.state_dict()["state"].items()},
            "scheduler": {"last_epoch": self._scheduler.last_epoch},
        }

    def load_state_dict(self, state: dict) -> None:
        parameters = dict(self.module.named_parameters())
        with torch.no_grad():
            for name, weight in state["weights"].items():
                parameters[name].copy_(weight)
        current = self._optimizer.state_dict()
        moments = {int(index): moment for index, moment in state["optimizer"].items()}
        self._optimizer.load_state_dict({"state": moments, "param_groups": current["param_groups"]})
        self._scheduler.last_epoch = state["scheduler"]["last_epoch"]
        for group, base_lr, factor in zip(
            self._optimizer.param_groups, self._scheduler.base_lrs, self._scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base_lr * factor(self._scheduler.last_epoch)
