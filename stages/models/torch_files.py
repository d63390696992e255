"""Files that torch itself wrote into a checkpoint, such as an optimizer's state: opened only as tensors."""

import pickle
from pathlib import Path

import torch
from transformers.trainer_pt_utils import safe_globals

from stages.base import InputError
from stages.models.trusted import PICKLED, require_plain_files


def require_tensors_only(checkpoint: Path) -> None:
    """Refuse a checkpoint in which a file of torch's is not tensors and plain values, or lies elsewhere.

    transformers' Trainer opens these files in the same restricted way; here the mistake is told before it starts.
    Raises InputError SAFE03 (a link or pipe), SAFE06 (more than tensors).
    """
    require_plain_files(checkpoint)
    for path in sorted(path for path in checkpoint.rglob("*") if path.suffix in PICKLED):
        try:
            with safe_globals():  # the arrays of NumPy's random state
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            told = next(iter(str(error).splitlines()), type(error).__name__)
            problem = f"{path} holds more than tensors and plain values, or is damaged ({told:.100})"
            raise InputError(
                "SAFE06", problem, fix=f"delete {checkpoint}; the stage goes on from the one before"
            ) from error
