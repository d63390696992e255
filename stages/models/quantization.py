"""Frozen weights in four bits (NF4, arXiv 2305.14314), where bitsandbytes supports the machine."""

import importlib.util

import torch
from transformers import BitsAndBytesConfig

from stages.base import InputError


def four_bit_config() -> BitsAndBytesConfig:
    """The quantisation of a frozen base; products are computed in bfloat16 under autocast, else in float32.

    Raises InputError DEP02, before anything is loaded, when a small product in four bits does not work here.
    """
    problem = _problem()
    if problem:
        raise InputError(
            "DEP02",
            f"model.quantization: 4bit cannot run here: {problem}",
            fix="pip install 'rlhf-pipeline[4bit]' on a machine that bitsandbytes supports, or quantization: none",
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )


def _problem() -> str | None:
    """Why four-bit weights cannot be used, found by using some."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed"
    try:
        from bitsandbytes.nn import Linear4bit

        layer = Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        layer.to(device)(torch.ones(1, 64, device=device))
    except Exception as error:  # a library for other hardware fails in ways of its own
        return f"bitsandbytes says {type(error).__name__}: {error}"
    return None
