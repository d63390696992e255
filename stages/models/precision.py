"""Device and arithmetic of a process."""

from contextlib import AbstractContextManager

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def emulates_bfloat16() -> bool:
    """Whether this is an x86 processor with vectors of AVX2 alone, which has no instruction for bfloat16 products."""
    return device().type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"


def autocast(compute: str, on: torch.device) -> AbstractContextManager:
    """Matrix products in `compute` ("float32" or "bfloat16"); what needs float32 stays float32."""
    return torch.autocast(on.type, dtype=DTYPES[compute], enabled=compute != "float32")
