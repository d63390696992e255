"""PPO's engine on DeepSpeed: several ranks, ZeRO 0 to 3. The verbs and what is saved are those of plain torch.

Gradients are *summed* over the ranks: each holds its rows' share of a loss that is already divided by all tokens.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import deepspeed
import torch
from torch import Tensor, nn

from stages import zero_state
from stages.batch_split import BatchSplit
from stages.deepspeed_config import DeepSpeedConfig
from stages.deepspeed_json import deepspeed_json, zero_stage
from stages.deepspeed_start import join_ranks, limit_waiting
from stages.deepspeed_steps import backward_scaled
from stages.engine import TorchEngine, TorchEngines
from stages.loss_scale import LossScale


@dataclass(frozen=True)
class DeepSpeedEngines(TorchEngines):
    """Puts models under DeepSpeed, each under an engine of its own."""

    settings: DeepSpeedConfig = DeepSpeedConfig()

    def __post_init__(self) -> None:
        join_ranks(self.world.timeout_s)

    @property
    def splits_weights(self) -> bool:
        return self.stage == 3

    @property
    def stage(self) -> int:
        return zero_stage(self.settings)

    def trained(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        max_grad_norm: float,
    ) -> "DeepSpeedEngine":
        return DeepSpeedEngine(self, module, optimizer, schedule, max_grad_norm)

    def frozen(self, module: nn.Module) -> nn.Module:
        """The same module, its weights spread over the ranks under ZeRO 3."""
        if self.splits_weights:
            deepspeed.initialize(model=module, config=self.config(0.0))
            limit_waiting(self.world.timeout_s)
        return module

    def config(self, max_grad_norm: float) -> dict:
        """DeepSpeed's own settings. The trainer cuts the batches, so the sizes are formal: a row on each rank."""
        limit = max_grad_norm if self.stage else 0.0  # at stage 0 the gradients are whole, and clip() does it
        return deepspeed_json(self.settings, BatchSplit(1, 1, self.world.size), limit)


class DeepSpeedEngine(TorchEngine):
    """AdamW under DeepSpeed. All ranks call every verb together."""

    def __init__(
        self,
        engines: DeepSpeedEngines,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        max_grad_norm: float,
    ):
        super().__init__(module, optimizer, schedule, max_grad_norm, LossScale.of(engines.compute))
        self._ranks, self._stage = engines.world.size, engines.stage
        self._left_out = False
        self._gathers = engines.settings.gather_for_rollouts
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=engines.config(max_grad_norm))
        limit_waiting(engines.world.timeout_s)

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """DeepSpeed averages over the ranks; a sum is wanted."""
        if self._stage:  # its forward() does so, which is not called here: the gradient is one more of the same step
            self._engine.optimizer.clear_backward_seen_flag()
        self._engine.set_gradient_accumulation_boundary(last)
        backward_scaled(self._engine, loss * self._ranks, self.loss_scale)

    def clip(self) -> float | None:
        norm = super().clip()
        self._left_out = norm is None
        return norm

    def _clipped(self) -> float:
        """The norm; gradients that are spread over the ranks are scaled down within step()."""
        if not self._stage:
            return super()._clipped()
        scale = 1.0 if self.loss_scale is None else self.loss_scale.value
        return zero_state.gradient_norm(self._engine.optimizer) / scale

    def step(self) -> None:
        if not self._left_out:
            self._engine.step()
        self._scheduler.step()

    def discard(self) -> None:
        if self._stage:
            zero_state.forget_gradients(self._engine.optimizer)
        else:
            super().discard()

    @contextmanager
    def whole(self) -> Iterator[None]:
        if self._stage < 3:
            yield
            return
        with (
            deepspeed.zero.GatheredParameters(list(self.module.parameters())),
            zero_state.without_hooks(self._engine.optimizer),
        ):
            yield

    def sampling(self) -> AbstractContextManager:
        return self.whole() if self._gathers else nullcontext()

    def _weights(self) -> dict[str, Tensor]:
        return {name: zero_state.weight(p) for name, p in self.trained()} if self._stage else super()._weights()

    def _moments(self) -> dict:
        if not self._stage:
            return super()._moments()
        return zero_state.moments(self._engine.optimizer, [p for _, p in self.trained()])

    def _load_weights(self, weights: dict[str, Tensor]) -> None:
        if self._stage == 3:
            with deepspeed.zero.GatheredParameters([p for _, p in self.trained()], modifier_rank=0):
                super()._load_weights(weights)
        else:
            super()._load_weights(weights)
        if self._stage:
            for name, p in self.trained():
                zero_state.set_weight(p, weights[name])

    def _load_moments(self, found: dict) -> None:
        if self._stage:
            zero_state.set_moments(self._engine.optimizer, [p for _, p in self.trained()], found)
        else:
            super()._load_moments(found)
