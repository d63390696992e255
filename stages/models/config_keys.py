"""Entries of a model's JSON files that make code be fetched or run. Imports no torch."""

import re
from collections.abc import Iterator
from typing import Any

_INTERNAL = ("_attn_implementation_internal", "_experts_implementation_internal")
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
_FETCHING = ("fp8", "fbgemm_fp8", "mxfp4", "nvfp4", "eetq", "metal")
"""Quantisation methods whose products are code from the hub."""


def code_in(key: str, value: Any, trust: bool) -> str | None:
    """How an entry makes code be fetched or run, or None."""
    if key in ("auto_map", "trust_remote_code") and value and not trust:
        return f"'{key}' runs Python code that comes with the model"
    if key in _INTERNAL:
        return f"'{key}' makes code be fetched, whatever trust_remote_code says"
    if key in _KERNELS and any(not re.fullmatch(r"\w+", str(name)) for name in _named(value)):
        return f"'{key}: {value!r:.60}' makes code be fetched, expected a word such as sdpa"
    if key == "quant_method" and str(value).lower() in _FETCHING:
        return f"'quant_method: {value}' computes with code from the hub"
    if key == "model_type" and value and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(value)):
        return f"'model_type' is {value!r:.60}, expected a word"
    if key == "megatron_config" and value or key == "megatron_core" and value not in (None, "megatron.core"):
        return f"'{key}' imports a module of the adapter's choice"
    library = value.get("parent_library") if key == "auto_mapping" and isinstance(value, dict) else None
    if library and str(library).partition(".")[0] not in ("transformers", "peft"):
        return f"'auto_mapping' imports the module {library!r:.60}"
    return None


def remedy(key: str) -> str:
    """What to do about such an entry."""
    if key in ("auto_map", "trust_remote_code"):
        return "read that code; if you trust it, model.trust_remote_code: true (it holds for model.path alone)"
    return f"remove '{key}' from that file"


def _named(value: Any) -> list[Any]:
    values = value.values() if isinstance(value, dict) else [value]
    return [name for name in values if name is not None]


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key at any depth, with its value."""
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            yield from current.items()
        waiting += current.values() if isinstance(current, dict) else current if isinstance(current, list) else ()
