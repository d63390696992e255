"""Gradients and optimizer state that ZeRO 1 to 3 spread over the ranks, seen whole. Every call is collective.

DeepSpeed keeps the trained weights of a rank's part as flat float32 tensors, and Adam's moments in their shape.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


def weight(parameter: nn.Parameter) -> Tensor:
    """The whole float32 weight, on the CPU."""
    return safe_get_full_fp32_param(parameter).detach().cpu().clone()


def set_weight(parameter: nn.Parameter, value: Tensor) -> None:
    """Set this rank's part of the float32 weight."""
    safe_set_full_fp32_param(parameter, value)


def moments(zero: object, parameters: Sequence[nn.Parameter]) -> dict[str, dict[str, Tensor]]:
    """Adam's state of each parameter by its number, on the CPU; empty before the first step."""
    state = zero.optimizer.state
    flats = [flat for flat in _flats(zero) if flat in state]
    if not flats:
        return {}
    _link(zero)
    step = state[flats[0]]["step"].detach().cpu().clone()
    whole = [{name: safe_get_full_optimizer_state(p, name).cpu().clone() for name in MOMENTS} for p in parameters]
    return {str(number): {"step": step.clone(), **found} for number, found in enumerate(whole)}


def set_moments(zero: object, parameters: Sequence[nn.Parameter], found: dict[str, dict[str, Tensor]]) -> None:
    """Set this rank's part of Adam's state, whatever it is now."""
    state = zero.optimizer.state
    state.clear()
    if not found:
        return
    for flat in _flats(zero):
        step = found["0"]["step"].clone()
        state[flat] = {"step": step, **{name: torch.zeros_like(flat) for name in MOMENTS}}
    _link(zero)
    for number, parameter in enumerate(parameters):
        for name in MOMENTS:
            safe_set_full_optimizer_state(parameter, found[str(number)][name], name)


def _link(zero: object) -> None:
    """ZeRO 1 and 2 find a parameter's moments by links, which they make when the first of several groups has some."""
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def gradient_norm(zero: object) -> float:
    """L2 norm of the gradients of all ranks; NaN when one of them is not finite."""
    groups = zero.scaled_global_norm() if hasattr(zero, "scaled_global_norm") else zero._get_norm_groups()
    norm = float(torch.linalg.vector_norm(torch.stack([torch.as_tensor(g).float() for g in _listed(groups)])))
    invalid = any(float(g) < 0 for g in _listed(groups))
    return float("nan") if invalid else norm


def forget_gradients(zero: object) -> None:
    """Drop what has been accumulated since the last step."""
    zero.zero_grad(set_to_none=True)
    zero.averaged_gradients = {}
    if getattr(zero, "cpu_offload", False):  # ZeRO 1 and 2 add to what is in CPU memory but after a step of their own
        zero.micro_step_id = INITIAL_MICRO_STEP_ID
        zero._offload_accumulated_param_ids = set()
        zero.reset_cpu_buffers()


@contextmanager
def without_hooks(zero: object) -> Iterator[None]:
    """Inside, the modules under ZeRO 3 compute with what is there: nothing is gathered or freed as they are called."""
    offload = zero.parameter_offload
    for parameter in offload.module.parameters():
        parameter.ds_active_sub_modules.clear()
    for hook in (*offload.forward_hooks, *offload.backward_hooks):
        hook.remove()
    offload.forward_hooks, offload.backward_hooks = [], []
    try:
        yield
    finally:
        coordinator = offload.get_param_coordinator()
        if not coordinator.is_invalid_trace():
            coordinator._invalidate_trace()  # it was recorded with other calls in between
        offload._register_deepspeed_module(offload.module)


def _listed(groups: object) -> list:
    return list(groups) if isinstance(groups, (list, tuple)) else [groups]


def _flats(zero: object) -> Sequence[Tensor]:
    """This rank's parts, in the order of the optimizer's groups."""
    names = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")  # ZeRO 1 and 2; ZeRO 3
    return next(getattr(zero, name) for name in names if hasattr(zero, name))
