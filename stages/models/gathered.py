"""Weights that ZeRO 3 has spread over the ranks, seen whole."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn


def spread(model: nn.Module) -> bool:
    """Whether a rank holds only its part of the weights."""
    return any(hasattr(p, "ds_id") for p in model.parameters())


def gathered(parameters: Iterable[nn.Parameter]) -> AbstractContextManager:
    """Inside, every rank can read these parameters whole. All ranks enter and leave together.

    Inside, a module that ZeRO has hooked is called `without_hooks`, or by all ranks.
    """
    split = [p for p in parameters if hasattr(p, "ds_id")]
    _settle(split)
    return _gathered([p for p in split if not _in_hand(p)])


def _gathered(split: list[nn.Parameter]) -> AbstractContextManager:
    if not split:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(split)


def _in_hand(parameter: nn.Parameter) -> bool:
    """Whether the parameter is whole already, within an outer context."""
    from deepspeed.runtime.zero.partition_parameters import DS_Z3_GATHERED_PARAM_CONTEXT_DEPTH_ATTR as DEPTH

    return getattr(parameter, DEPTH, 0) > 0


def _settle(split: Iterable[nn.Parameter]) -> None:
    """Wait for weights that DeepSpeed has sent for ahead of a layer that was not used, and give them back."""
    split = [p for p in split if hasattr(p, "_z3_optimizer") and not _in_hand(p)]
    for zero in {id(p._z3_optimizer): p._z3_optimizer for p in split}.values():
        zero._partition_all_parameters()


def whole_weights(model: nn.Module, keep: bool) -> dict[str, Tensor] | None:
    """The weights of a spread model on the CPU, gathered one by one; None for one that is whole.

    All ranks call it together; only those that `keep` what was gathered need the memory for it.
    """
    split = [p for p in model.parameters() if hasattr(p, "ds_id")]
    if all(_in_hand(p) for p in split):
        return None
    _settle(split)
    saved = model.state_dict().keys()
    buffers = {name: buffer.detach().cpu() for name, buffer in model.named_buffers() if name in saved}
    return dict(_each(model, keep)) | buffers


def _each(model: nn.Module, keep: bool) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        with _gathered([parameter]):
            if keep:
                yield name, parameter.detach().cpu().clone()


@contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    """Inside, the modules below are called as they are; their weights must be whole."""
    tables = [table for m in module.modules() for table in (m._forward_pre_hooks, m._forward_hooks)]
    kept = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    try:
        yield
    finally:
        for table, hooks in zip(tables, kept, strict=True):
            table.update(hooks)
