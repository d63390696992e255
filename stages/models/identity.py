"""Which weights an adapter was trained on, so that it is never put on others."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.base import InputError
from stages.models.adapter_files import BASE_FILE
from stages.models.weight_files import PROBED

_PROBED_TENSORS = 16


@dataclass(frozen=True)
class BaseIdentity:
    """A base model: where it was found, and what is in it."""

    id: str
    weights: str
    """Digest of names, shapes and values."""
    probes: dict[str, str] = field(default_factory=dict)
    """First values of some tensors, so that other weights are recognised from their files."""

    def save(self, folder: Path) -> None:
        (folder / BASE_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the parameters as bfloat16, so that the type they are stored in does not matter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def probes_of(model: nn.Module) -> dict[str, str]:
    """First values of some parameters as bfloat16, in hexadecimal digits."""
    parameters = sorted(model.named_parameters())
    chosen = parameters[:: max(1, len(parameters) // _PROBED_TENSORS)]
    return {name: _hex(tensor.detach().flatten()[:PROBED]) for name, tensor in chosen}


def _hex(values: Tensor) -> str:
    return values.to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes().hex()


def require_same_base(folder: Path, base: BaseIdentity) -> None:
    """Refuse an adapter that was trained on other weights; one that does not say is let through.

    Raises InputError PEFT01.
    """
    file = folder / BASE_FILE
    if not file.is_file():
        return
    trained_on = BaseIdentity(**json.loads(file.read_text(encoding="utf-8")))
    if trained_on.weights != base.weights:
        raise InputError(
            "PEFT01",
            f"the adapter {folder} was trained on '{trained_on.id}' (weights {trained_on.weights[:12]}), "
            f"'{base.id}' has other weights ({base.weights[:12]})",
            fix="load it on the base that it was trained on",
        )
