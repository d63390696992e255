"""An exponential moving average of the policy's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """`average <- decay average + (1 - decay) weights` after each optimizer step (InstructGPT used 0.992)."""

    def __init__(self, module: nn.Module, decay: float):
        self._weights = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._average = {n: p.detach().clone() for n, p in self._weights.items()}
        self._decay = decay

    @torch.no_grad()
    def update(self) -> None:
        for name, weight in self._weights.items():
            self._average[name].lerp_(weight, 1 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module computes with the average; its weights are back afterwards, bit for bit."""
        own = {n: p.detach().clone() for n, p in self._weights.items()}
        self._copy(self._average)
        try:
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(values[name])

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._average)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            self._average[name].copy_(value)
