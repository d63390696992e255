"""Whether texts can be looked at yet, and the look itself. Imports no torch until there is a tokenizer to load."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import PipelineConfig
from pipeline.findings import Findings
from pipeline.parents import is_local

_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")

Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def check_texts(config: PipelineConfig, rows: Rows, found: Findings) -> None:
    """Look at the texts of `rows`, which are those of `demonstrations.train` and so on.

    Without a tokenizer on this machine there is a note and nothing else.
    """
    if rows and has_tokenizer(config.model.path):
        from pipeline.texts.checks import TextChecks  # torch and transformers

        TextChecks(config, found).look(rows)
    elif rows:
        found.notes.append(f"no tokenizer of '{config.model.path}' on this machine yet: texts not checked as tokens")


def has_tokenizer(model_path: str) -> bool:
    """Whether that model's tokenizer is here: in a folder, in a GGUF file, or in the cache of the hub."""
    path = Path(model_path)
    if path.is_dir():
        return any((path / name).is_file() for name in _FILES)
    if path.is_file() or is_local(model_path):
        return path.suffix == ".gguf" and path.is_file()
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return any(isinstance(try_to_load_from_cache(model_path, name), str) for name in _FILES)
    except HFValidationError:
        return False
