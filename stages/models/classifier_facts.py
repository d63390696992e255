"""Reward models of others: what the files of a classifier say of its labels and head. Imports no torch."""

import json
import re
from pathlib import Path
from typing import Any

from stages.base import InputError
from stages.models.hub import cached_folder, is_hub_id
from stages.models.trusted import adapter_base
from stages.models.weight_files import StoredTensor, tensors_in

OURS = "reward_model.json"
"""What a reward_model stage puts beside each of its models."""
_HEAD = re.compile(
    r"(?:^|\.)(?:score|classifier|classification_head|classification_layer|sequence_summary|logits_proj)\."
)
_LAST = re.compile(r"(?:score|classifier|out_proj)(?:\.modules_to_save(?:\.\w+)?)?\.weight$")


def is_foreign(path: str | Path) -> bool:
    """Whether a reward model that a term names was made elsewhere: a hub id, or a folder without our centring."""
    return is_hub_id(str(path)) or (Path(path).is_dir() and not (Path(path) / OURS).is_file())


def labels_of(path: str | Path) -> list[str]:
    """Names of a classifier's labels in the order of its logits. Raises InputError RM04 when an adapter has no head."""
    folder = Path(cached_folder(str(path)) or path)
    config = _json(folder / "config.json")
    base = adapter_base(folder)
    if base is None:
        return _names(
            config, config.get("num_labels") or len(config.get("id2label") or (0, 1))
        )  # transformers' default
    heads = [tensor for name, tensor in _head(folder).items() if _LAST.search(name) and len(tensor.shape) == 2]
    if not heads:
        raise _headless(folder)
    base_config = _json(Path(cached_folder(base) or base) / "config.json")
    return _names(config or base_config, heads[-1].shape[0])


def label_of(path: str | Path, label_index: int | None) -> int:
    """Which logit is the score.

    Raises InputError RM01 (several, and none is named), RM07 (there is no such label), RM04 as `labels_of`.
    """
    labels = labels_of(path)
    told = ", ".join(f"{i} {name}" for i, name in enumerate(labels[:10]))
    fix = f"set label_index of that term to one of 0 to {len(labels) - 1}"
    if label_index is None and len(labels) > 1:
        problem = f"reward model {path} gives {len(labels)} values per text ({told}); which is the score is not said"
        raise InputError("RM01", problem, fix=fix)
    if label_index is not None and label_index >= len(labels):
        raise InputError("RM07", f"reward model {path} has no label {label_index}; found {told}", fix=fix)
    return label_index or 0


def require_head(path: str | Path) -> None:
    """Raises InputError RM04 when the weights of a whole model have no head, as far as their names tell."""
    folder = Path(cached_folder(str(path)) or path)
    if adapter_base(folder) is None and tensors_in(folder) and not _head(folder):
        raise _headless(folder)


def _head(folder: Path) -> dict[str, StoredTensor]:
    return {name: tensor for name, tensor in tensors_in(folder).items() if _HEAD.search(name) and "lora" not in name}


def _headless(folder: Path) -> InputError:
    problem = f"reward model {folder} has no classification head among its {len(tensors_in(folder))} tensors"
    return InputError("RM04", problem, fix="name a folder that was saved with its head")


def _names(config: dict[str, Any], count: int) -> list[str]:
    named = {int(i): str(name) for i, name in (config.get("id2label") or {}).items()}
    return [named.get(i, f"LABEL_{i}") for i in range(count)]


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
