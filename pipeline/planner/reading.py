"""The architecture that a path names: a folder's config.json, a GGUF header, or the base of an adapter. No torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.planner.architecture import GATED, GPT2, LAYOUTS, NEOX, Architecture
from stages.base import InputError
from stages.models.file_formats import GGUFHeader, read_gguf
from stages.models.hub import cached_folder
from stages.models.trusted import adapter_base

_GGUF_TYPES = ("llama", "qwen2", "qwen3")


def architecture_of(path: str) -> Architecture:
    """The decoder that `path` names.

    Raises InputError PLAN01 for sizes that are not to be had, or a model type that is not known.
    """
    file = Path(path)
    if file.is_file() and file.suffix == ".gguf":
        return from_gguf(_header(file), path)
    base = adapter_base(file)
    if base is not None and base != path:
        return architecture_of(base)
    folder = Path(cached_folder(path) or path)
    config = folder / "config.json"
    if not config.is_file():
        problem = f"the sizes of the model '{path}' are not known: there is no {config}"
        raise InputError(
            "PLAN01", problem, fix="model.path=FOLDER, a folder that has its config.json (no weights needed)"
        )
    try:
        return from_config(json.loads(config.read_text(encoding="utf-8")), str(config))
    except ValueError as error:
        raise InputError("PLAN01", f"{config} is no JSON ({error})", fix="correct that file") from error


def from_config(values: Mapping[str, Any], where: str) -> Architecture:
    """The decoder that a config.json describes; what it leaves out has transformers' default for its type.

    Raises InputError PLAN01 for a type that is not known, or a size that is missing or no count.
    """
    kind = values.get("model_type")
    if kind not in LAYOUTS:
        raise InputError(
            "PLAN01",
            f"{where}: the layers of model_type '{kind}' are not known; found {', '.join(LAYOUTS)}",
            fix="plan with the config.json of one of these that has the same sizes",
        )
    read = {GATED: _gated, GPT2: _gpt2, NEOX: _neox}[LAYOUTS[kind]]
    return read(kind, _Sizes(values, where))


class _Sizes:
    """Entries of a config that have to be counts."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self._values, self._where = values, where

    def __call__(self, key: str, default: int | None = None) -> int:
        """The count at `key`; where it says nothing, the default. Raises InputError PLAN01."""
        value = self._values.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise InputError("PLAN01", f"{self._where}: '{key}' is {value!r:.60}, expected a count", fix="correct it")
        return value

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._values.get(key, default))


def _gated(kind: str, size: _Sizes) -> Architecture:
    hidden, heads = size("hidden_size"), size("num_attention_heads")
    biased = kind == "qwen2" or (kind in ("llama", "qwen3") and size.flag("attention_bias", False))
    return Architecture(
        model_type=kind,
        hidden=hidden,
        layers=size("num_hidden_layers"),
        heads=heads,
        kv_heads=size("num_key_value_heads", heads),
        head_size=size("head_dim", 128 if kind == "qwen3" else hidden // heads),
        intermediate=size("intermediate_size"),
        vocabulary=size("vocab_size"),
        tied=size.flag("tie_word_embeddings", False),
        attention_bias=biased,
        output_bias=biased and kind != "qwen2",
        mlp_bias=kind == "llama" and size.flag("mlp_bias", False),
        query_key_norm=kind == "qwen3",
    )


def _gpt2(kind: str, size: _Sizes) -> Architecture:
    hidden, heads = size("n_embd"), size("n_head")
    return Architecture(
        model_type=kind,
        hidden=hidden,
        layers=size("n_layer"),
        heads=heads,
        kv_heads=heads,
        head_size=hidden // heads,
        intermediate=size("n_inner", 4 * hidden),
        vocabulary=size("vocab_size"),
        positions=size("n_positions", 1024),
        tied=size.flag("tie_word_embeddings", True),
        attention_bias=True,
        output_bias=True,
        mlp_bias=True,
    )


def _neox(kind: str, size: _Sizes) -> Architecture:
    hidden, heads = size("hidden_size"), size("num_attention_heads")
    biased = size.flag("attention_bias", True)
    return Architecture(
        model_type=kind,
        hidden=hidden,
        layers=size("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_size=hidden // heads,
        intermediate=size("intermediate_size"),
        vocabulary=size("vocab_size"),
        tied=size.flag("tie_word_embeddings", False),
        attention_bias=biased,
        output_bias=biased,
        mlp_bias=True,
        parallel_residual=size.flag("use_parallel_residual", True),
    )


def _header(file: Path) -> GGUFHeader:
    try:
        return read_gguf(file)
    except ValueError as error:
        raise InputError("PLAN01", f"{file} {error}", fix="give a whole GGUF file") from error


def from_gguf(header: GGUFHeader, where: str) -> Architecture:
    """The decoder of a GGUF file, as transformers will build it. Raises InputError PLAN01 as `from_config`."""
    kind = header.facts.get(b"general.architecture", b"").decode("utf-8", errors="replace")
    if kind not in _GGUF_TYPES:
        known = ", ".join(_GGUF_TYPES)
        raise InputError(
            "PLAN01", f"{where}: the layers of a GGUF '{kind}' are not known; found {known}", fix="name one"
        )

    def number(key: str) -> int | None:
        found = header.facts.get(f"{kind}.{key}".encode())
        return None if found is None else int.from_bytes(found, "little")

    values = {
        "model_type": kind,
        "hidden_size": number("embedding_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": number("attention.head_count"),
        "num_key_value_heads": number("attention.head_count_kv"),
        "head_dim": number("attention.key_length"),
        "intermediate_size": number("feed_forward_length"),
        "vocab_size": header.embedding_rows,
        "tie_word_embeddings": not header.has_output,
    }
    return from_config(values, where)
