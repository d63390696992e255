"""What a stage leaves, as digests: two stages did the same when these are equal."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.hashing import files_of, sha256_file, sha256_of
from pipeline.seals import MANIFEST

TIMES = ("time/", "per_second", "_runtime", "_time")
_NO_RESULT = (MANIFEST, "training_args.bin")
"""Files of a checkpoint that hold times or paths."""


def trace(folder: Path) -> dict[str, str]:
    """Digests of a stage's model, newest checkpoint, logged rows, samples and headline, by what they are of."""
    found = {f"final/{name}": sha256_file(path) for name, path in files_of(folder / "final").items()}
    newest = max(folder.glob("checkpoints/step-*"), default=None)
    for name, path in files_of(newest).items() if newest else ():
        if name not in _NO_RESULT:
            found[f"checkpoint/{name}"] = _digest(path)
    found["checkpoint"] = newest.name if newest else "none"
    found["metrics"] = sha256_of(metrics(folder))
    found["samples"] = sha256_of(rows(folder / "samples.jsonl"))
    found["headline"] = sha256_of(json.loads((folder / "stage.json").read_text())["headline"])
    wandb = folder / "wandb.json"
    return found | ({"wandb": wandb.read_text()} if wandb.is_file() else {})


def differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Names of what is not the same."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what a clock gives."""
    return [_timeless(row) for row in rows(folder / "metrics.jsonl")]


def rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; none without it."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def _timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "time" and not any(part in name for part in TIMES)}


def _digest(path: Path) -> str:
    if path.name == "trainer_state.json":
        state = json.loads(path.read_text())
        return sha256_of(state | {"log_history": [_timeless(row) for row in state["log_history"]]})
    if path.name == "adapter_config.json":  # PEFT writes its sets in any order
        content = json.loads(path.read_text())
        return sha256_of({name: sorted(v) if isinstance(v, list) else v for name, v in content.items()})
    if path.suffix not in (".pt", ".pth"):
        return sha256_file(path)
    import torch
    from transformers.trainer_pt_utils import safe_globals

    with safe_globals():
        content = torch.load(path, weights_only=True)
    digest = hashlib.sha256()
    _feed(digest, content)
    return digest.hexdigest()


def _feed(digest: Any, node: Any) -> None:
    """Add a tree of containers, tensors and arrays to a digest."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            digest.update(repr(key).encode())
            _feed(digest, value)
    elif isinstance(node, list | tuple):
        digest.update(f"{len(node)}".encode())
        for value in node:
            _feed(digest, value)
    elif hasattr(node, "dtype"):
        array = node.numpy() if hasattr(node, "numpy") else node
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    else:
        digest.update(repr(node).encode())
