"""Hashes of files, folders and base models: what "unchanged" means in a run. Imports no torch."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from stages.durable import write_json

_MODEL_SUFFIXES = (".safetensors", ".bin", ".gguf", ".json", ".model", ".jinja", ".txt")
_TOKENIZER_PARTS = ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor")
_CHUNK = 1 << 20


def sha256_bytes(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(value: Any) -> str:
    """Digest of plain data, independent of the order of its keys."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def sha256_file(path: Path) -> str:
    """Digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def files_of(folder: Path) -> dict[str, Path]:
    """All regular files below a folder by their relative name, sorted."""
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


def model_files(folder: Path) -> dict[str, Path]:
    """The files of a model's folder that decide what it is, by name."""
    return {n: p for n, p in files_of(folder).items() if p.suffix in _MODEL_SUFFIXES and "/" not in n}


class FileHashes:
    """Digests remembered beside size and modification time, so that a gigabyte is read once."""

    def __init__(self, store: Path | None = None):
        self._store = store
        self._known: dict[str, list] = _read_json(store) if store else {}

    def file(self, path: Path) -> str:
        """Digest of a file; recomputed when its size, time or inode changed."""
        stat = path.stat()
        mark = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        key = str(path.resolve())
        known = self._known.get(key)
        if known and known[:3] == mark:
            return known[3]
        digest = sha256_file(path)
        self._known[key] = [*mark, digest]
        self._remember()
        return digest

    def folder(self, folder: Path) -> str:
        """Digest of the sorted (name, digest) pairs of a folder's files."""
        return sha256_of([[name, self.file(path)] for name, path in files_of(folder).items()])

    def base(self, model_path: str) -> str:
        """Digest of a base model: the GGUF file, the model files of a folder, or the id of a hub model."""
        path = Path(model_path)
        if path.is_file():
            return self.file(path)
        if path.is_dir():
            return sha256_of([[name, self.file(file)] for name, file in model_files(path).items()])
        return sha256_of(["hub", model_path])

    def _remember(self) -> None:
        if self._store:
            with suppress(OSError):  # it only saves reading the files once more
                write_json(self._store, self._known)


def tokenizer_hash(folder: Path) -> str | None:
    """Digest of what decides the ids of a text; None without tokenizer.json.

    Truncation and padding are left out: libraries write their last use of them into the file.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return sha256_of({part: content.get(part) for part in _TOKENIZER_PARTS})


def template_hash(folder: Path) -> str | None:
    """Digest of the chat template, wherever the tokenizer keeps it; None when there is none."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return sha256_bytes(path.read_bytes())
    template = _read_json(folder / "tokenizer_config.json").get("chat_template")
    return sha256_of(template) if template else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
