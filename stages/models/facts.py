"""What a model says of its sizes, from its config or GGUF header alone. Imports no torch."""

import json
from dataclasses import dataclass
from pathlib import Path

from stages.models.file_formats import read_gguf
from stages.models.trusted import adapter_base

_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length")


@dataclass(frozen=True)
class ModelFacts:
    """None where it is not said."""

    context: int | None = None
    """Tokens that the model can attend to."""
    embedding_rows: int | None = None
    """Token ids that it knows are below this."""


def facts_of(path: str) -> ModelFacts:
    """The sizes of a folder, a GGUF file, or the base of an adapter; nothing of a hub id.

    Raises ValueError when the file is damaged.
    """
    file = Path(path)
    if file.is_file() and file.suffix == ".gguf":
        header = read_gguf(file)
        return ModelFacts(header.context, header.embedding_rows)
    base = adapter_base(file)
    if base is not None:
        return facts_of(base) if base != path else ModelFacts()
    config = file / "config.json"
    if not config.is_file():
        return ModelFacts()
    values = json.loads(config.read_text(encoding="utf-8"))
    values |= values.get("text_config") or {}
    return ModelFacts(next((values[key] for key in _CONTEXT if values.get(key)), None), values.get("vocab_size"))
