"""Device and arithmetic of a process."""

import platform
from contextlib import AbstractContextManager

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def emulates_bfloat16() -> bool:
    """Whether this is an x86 processor without instructions for bfloat16, where its products are slower than float32's.

    On one with AVX2 alone, 512 x 576 by 576 x 1536 ran at 31 against 149 GFLOPS on two cores.
    """
    if device().type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    return not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(compute: str, on: torch.device) -> AbstractContextManager:
    """Matrix products in `compute` ("float32" or "bfloat16"); what needs float32 stays float32."""
    return torch.autocast(on.type, dtype=DTYPES[compute], enabled=compute != "float32")
