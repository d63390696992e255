"""What is wrong with an adapter as far as its files and its base's tell. Imports no torch."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.base import InputError
from stages.models.weight_files import StoredTensor, tensors_in

BASE_FILE = "base.json"
_PREFIX = "base_model.model."
_DOWN, _UP = r"lora_A\.weight|lora_embedding_A", r"lora_B\.weight|lora_embedding_B"
_TRAIN_AGAIN = "give the final/ folder of a finished stage, or train it again"


def adapter_errors(folder: Path) -> Iterator[InputError]:
    """PEFT02: no tensors, or not all of them. PEFT01: made on other weights than those of the base that it names."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base = str(config.get("base_model_name_or_path"))
    found, weights = tensors_in(folder), tensors_in(base)
    incomplete = _incomplete(found, config, weights)
    if incomplete:
        yield InputError("PEFT02", f"{folder}: {incomplete}", fix=_TRAIN_AGAIN)
        return
    foreign = _other_shape(found, weights) or _other_values(folder, base, weights)
    if foreign:
        problem = f"the adapter {folder} was not trained on '{base}': {foreign}"
        fix = f"name its own base in {folder}/adapter_config.json, base_model_name_or_path"
        yield InputError("PEFT01", problem, fix=fix)


def _incomplete(
    found: Mapping[str, StoredTensor], config: Mapping[str, Any], weights: Mapping[str, StoredTensor]
) -> str | None:
    if not found:
        return "holds no tensors, expected those of an adapter in adapter_model.safetensors"
    empty = [name for name, tensor in found.items() if 0 in tensor.shape]
    if empty:
        return f"{len(empty)} of {len(found)} tensors are empty, such as {empty[0]} (saved without gathering shards?)"
    if config.get("peft_type") != "LORA":
        return None
    downs, ups = _modules(found, _DOWN), _modules(found, _UP)
    halves = sorted(downs ^ ups)
    if halves:
        return f"{halves[0]} has one of its two LoRA matrices"
    adapted = _adapted(config, weights)
    missing = sorted(adapted - downs)
    if missing:
        return f"holds {len(downs)} of {len(adapted)} adapted modules; {missing[0]} is missing"
    return None


def _modules(found: Mapping[str, StoredTensor], part: str) -> set[str]:
    pattern = re.compile(rf"{re.escape(_PREFIX)}(.*)\.(?:{part})")
    return {match[1] for name in found if (match := pattern.fullmatch(name))}


def _adapted(config: Mapping[str, Any], weights: Mapping[str, StoredTensor]) -> set[str]:
    """Modules of the base that the adapter's config names; none where it does not name them one by one."""
    targets = config.get("target_modules")
    if not isinstance(targets, list) or config.get("layers_to_transform") or config.get("exclude_modules"):
        return set()
    modules = {name.removesuffix(".weight") for name in weights if name.endswith(".weight")}
    return {module for module in modules if any(module == t or module.endswith(f".{t}") for t in targets)}


def _other_shape(found: Mapping[str, StoredTensor], weights: Mapping[str, StoredTensor]) -> str | None:
    for module in sorted(_modules(found, r"lora_A\.weight")):
        weight = weights.get(f"{module}.weight")
        if weight is None or len(weight.shape) != 2:
            continue
        down, up = (found[f"{_PREFIX}{module}.{part}.weight"].shape for part in ("lora_A", "lora_B"))
        shape = (up[0], down[-1])
        if shape not in (weight.shape, weight.shape[::-1]):  # some architectures keep the transpose
            return f"it changes {module} of shape {shape}, there it is {weight.shape}"
    return None


def _other_values(folder: Path, base: str, weights: Mapping[str, StoredTensor]) -> str | None:
    """Compares the first values of a few tensors with those that the adapter recorded of its base."""
    file = folder / BASE_FILE
    recorded = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name, values in recorded.get("probes", {}).items():
        stored = weights[name].first_values() if name in weights else None
        if stored is not None and stored != values:
            return f"{name} has other values there than in '{recorded['id']}'"
    return None
