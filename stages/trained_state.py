"""What training has changed, whole and by name, whoever held which part: one file for every ZeRO stage and rank count.

Weights and Adam's moments are float32, so that a resume over as many ranks goes on with the same bits, and over
another number with the same values. All ranks call together.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stages import zero_state
from stages.divergence import require_finite_state
from stages.zero_state import MOMENTS

STATE = "trained.safetensors"
_WEIGHT, _STEP = "weight", "step"


def trained_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that training changes, by name."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def gather_state(what: str, module: nn.Module, optimizer: Any, keep: bool) -> dict[str, Tensor]:
    """Weights and moments under `<name>/<what>`, on the CPU of those ranks that keep them, and the optimizer's step.

    `optimizer` is torch's AdamW, or DeepSpeed's optimizer of ZeRO 1 to 3 around one.
    Raises Diverged NUM01, on all ranks, when a number is not finite.
    """
    kept: dict[str, Tensor] = {}
    for name, parameter in trained_parameters(module):
        found = _state_of(parameter, optimizer)
        require_finite_state(what, ((f"{name}/{key}", tensor) for key, tensor in found.items()))
        if keep:
            kept |= {f"{name}/{key}": tensor for key, tensor in found.items()}
    return kept


def _state_of(parameter: nn.Parameter, optimizer: Any) -> dict[str, Tensor]:
    if _is_zero(optimizer):
        weight = zero_state.weight(parameter)
        moments = zero_state.moments(optimizer, [parameter]).get("0", {})
    else:
        weight = parameter.detach().cpu().clone()
        moments = {key: tensor.cpu().clone() for key, tensor in optimizer.state.get(parameter, {}).items()}
    return {_WEIGHT: weight, **moments}


def _is_zero(optimizer: Any) -> bool:
    return not isinstance(optimizer, torch.optim.Optimizer)


def write_state(state: Mapping[str, Tensor], folder: Path, ranks: int) -> None:
    """Write what was gathered, with the number of ranks that it comes from."""
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(contiguous, folder / STATE, metadata={"ranks": str(ranks)})


def writers(folder: Path) -> int:
    """How many ranks had computed the state in a folder."""
    with safe_open(folder / STATE, "pt") as file:
        return int(file.metadata()["ranks"])


def load_weights(module: nn.Module, folder: Path) -> None:
    """Copy the weights into a module whose parameters are whole."""
    with safe_open(folder / STATE, "pt") as file, torch.no_grad():
        for name, parameter in trained_parameters(module):
            parameter.copy_(file.get_tensor(f"{name}/{_WEIGHT}"))


def load_moments(module: nn.Module, optimizer: Any, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Set Adam's state from what is known of each parameter by its name."""
    named = trained_parameters(module)
    if _is_zero(optimizer):
        found = {str(number): moments[name] for number, (name, _) in enumerate(named)}
        zero_state.set_moments(optimizer, [p for _, p in named], found)
        return
    optimizer.state.clear()
    for name, parameter in named:
        optimizer.state[parameter] = {
            key: tensor.clone() if key == _STEP else tensor.to(parameter.device, copy=True)
            for key, tensor in moments[name].items()
        }


class StoredMoments(Mapping[str, Mapping[str, Tensor]]):
    """Adam's state in a folder by the parameter's name, read when it is asked for."""

    def __init__(self, folder: Path):
        self._file = folder / STATE
        with safe_open(self._file, "pt") as file:
            self._names = [key.rpartition("/")[0] for key in file.keys() if key.endswith(f"/{_WEIGHT}")]  # noqa: SIM118

    def __getitem__(self, name: str) -> Mapping[str, Tensor]:
        with safe_open(self._file, "pt") as file:
            return {key: file.get_tensor(f"{name}/{key}") for key in (*MOMENTS, _STEP)}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def moments_of_plain(file: Path, names: list[str]) -> dict[str, dict[str, Tensor]]:
    """The same from a file of torch's AdamW, whose parameters had these names, in their order."""
    state = torch.load(file, map_location="cpu", weights_only=True)["state"]
    return {name: state[number] for number, name in enumerate(names)}
