"""Nested state on disk without pickle: tensors in safetensors, everything else in JSON."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from stages.models.trusted import require_plain_files

SEPARATOR = "\x1f"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a tree of dicts whose leaves are tensors or JSON values. Keys must be strings."""
    tensors: dict[str, torch.Tensor] = {}
    rest = _split(state, (), tensors)
    save_file(tensors, folder / "state.safetensors")
    (folder / "state.json").write_text(json.dumps(rest))


def _split(node: Any, path: tuple[str, ...], tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, dict):
        return {key: _split(value, (*path, key), tensors) for key, value in node.items()}
    if isinstance(node, torch.Tensor):
        tensors[SEPARATOR.join(path)] = node.detach().cpu().contiguous().clone()
        return None
    return node


def load_state(folder: Path) -> dict[str, Any]:
    """What save_state wrote, tensors on the CPU. Raises InputError SAFE03 when a file of it lies elsewhere."""
    require_plain_files(folder)
    state = json.loads((folder / "state.json").read_text())
    for name, tensor in load_file(folder / "state.safetensors").items():
        *path, last = name.split(SEPARATOR)
        node = state
        for key in path:
            node = node[key]
        node[last] = tensor
    return state
