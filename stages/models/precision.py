"""Device and arithmetic of a process."""

from contextlib import AbstractContextManager

import torch
from torch import nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def emulates(compute: str) -> bool:
    """Whether products in `compute` are slower here than in float32.

    So are float16 on a processor, and bfloat16 on one with vectors of AVX2 alone, which has no instruction for it.
    """
    if device().type != "cpu":
        return False
    return compute == "float16" or (compute == "bfloat16" and torch.backends.cpu.get_cpu_capability() == "AVX2")


def autocast(compute: str, on: torch.device) -> AbstractContextManager:
    """Matrix products in `compute`; what needs float32 stays float32."""
    return torch.autocast(on.type, dtype=DTYPES[compute], enabled=compute != "float32")


def autocast_forward(model: nn.Module, compute: str, on: torch.device) -> None:
    """Let a model compute so whenever it is called, and answer in float32; its weights keep their type."""
    if compute == "float32":
        return
    from accelerate.utils import convert_outputs_to_fp32

    model.forward = convert_outputs_to_fp32(autocast(compute, on)(model.forward))
