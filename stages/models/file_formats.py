"""Whether the header of a weights file describes its bytes. Imports no torch."""

import json
import math
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HEADER_LIMIT = 25_000_000
"""Bytes of a safetensors header; 100,000 tensors need about 10 MB."""
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}


# Safetensors


def safetensors_problem(path: Path) -> str | None:
    """What in a file's header does not describe its bytes, or None."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little") if size >= 8 else size
        if length > min(_HEADER_LIMIT, size - 8):
            return f"announces a header of {length} bytes in a file of {size}"
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        return "has a header that is not JSON"
    if not isinstance(header, dict):
        return "has a header that is no JSON object"
    header.pop("__metadata__", None)
    spans = [_span(entry) for entry in header.values()]
    if None in spans:
        name = list(header)[spans.index(None)]
        return f"has a header whose entry {name!r:.60} describes no tensor"
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            return f"has tensors that overlap or leave a gap at byte {min(start, end)}"
        end = stop
    return None if end == size - 8 - length else f"announces {end} bytes of tensors and has {size - 8 - length}"


def _span(entry: Any) -> tuple[int, int] | None:
    """First and last byte of a tensor if its type, shape and place agree."""
    if not isinstance(entry, dict) or entry.get("dtype") not in _BITS:
        return None
    shape, place = entry.get("shape"), entry.get("data_offsets")
    if not _is_sizes(shape) or not _is_sizes(place) or len(place) != 2:
        return None
    bits = math.prod(shape) * _BITS[entry["dtype"]]
    return (place[0], place[1]) if (place[1] - place[0]) * 8 == bits else None


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


# GGUF

_FIXED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of each value type of a GGUF header."""
_TEXT, _ARRAY = 8, 9
_EMBEDDING, _OUTPUT = b"token_embd.weight", b"output.weight"


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says of its model."""

    facts: dict[bytes, bytes]
    """Numbers and texts as they lie in the file; lists are left out."""
    embedding_rows: int | None
    has_output: bool = False
    """Whether the output layer has weights of its own; else it is the embedding."""

    @property
    def template(self) -> str | None:
        """The chat template."""
        found = self.facts.get(b"tokenizer.chat_template")
        return None if found is None else found.decode("utf-8", errors="replace")

    @property
    def context(self) -> int | None:
        """Tokens that the model can attend to."""
        found = self.facts.get(self.facts.get(b"general.architecture", b"") + b".context_length")
        return None if found is None else int.from_bytes(found, "little")


class _Cursor:
    """Reads forward and never beyond the end."""

    def __init__(self, data: Any):
        self.data, self.at = data, 0

    def skip(self, count: int) -> int:
        start, self.at = self.at, self.at + count
        if self.at > len(self.data):
            raise ValueError(f"announces {count} bytes at {start}, the file has {len(self.data)}")
        return start

    def number(self, form: str) -> int:
        return struct.unpack_from(form, self.data, self.skip(struct.calcsize(form)))[0]

    def text(self) -> bytes:
        length = self.number("<Q")
        start = self.skip(length)
        return self.data[start : start + length]

    def value(self, kind: int, inside: bool = False) -> bytes:
        """The bytes of a value; of an array nothing."""
        if kind in _FIXED:
            start = self.skip(_FIXED[kind])
            return self.data[start : self.at]
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY or inside:
            raise ValueError(f"has a value of unknown type {kind}")
        self.array()
        return b""

    def array(self) -> None:
        kind, count = self.number("<I"), self.number("<Q")
        if kind in _FIXED:
            self.skip(_FIXED[kind] * count)
            return
        if count * 8 > len(self.data):
            raise ValueError(f"announces {count} texts, the file has {len(self.data)} bytes")
        for _ in range(count):
            self.value(kind, inside=True)


def read_gguf(path: Path) -> GGUFHeader:
    """The header of a GGUF file, when it describes the file's bytes.

    Raises ValueError when it announces more than it has.
    """
    if path.stat().st_size < 24:
        raise ValueError(f"has {path.stat().st_size} bytes, too few for a header")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _read_gguf(_Cursor(data))


def _read_gguf(cursor: _Cursor) -> GGUFHeader:
    size = len(cursor.data)
    magic, version = cursor.data[: cursor.skip(4) + 4], cursor.number("<I")
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError("is no GGUF file of version 2 or 3")
    tensors, pairs = cursor.number("<Q"), cursor.number("<Q")
    if (tensors + pairs) * 13 > size:
        raise ValueError(f"announces {tensors} tensors and {pairs} facts in {size} bytes")
    facts: dict[bytes, bytes] = {}
    for _ in range(pairs):
        key, kind = cursor.text(), cursor.number("<I")
        value = cursor.value(kind)
        if kind != _ARRAY:
            facts[key] = value
    described = [_tensor(cursor) for _ in range(tensors)]
    ends = [end for _, _, end in described]
    alignment = int.from_bytes(facts.get(b"general.alignment", b"\x20"), "little") or 1
    start = -(-cursor.at // alignment) * alignment
    if ends and start + max(ends) > size:
        raise ValueError(f"announces tensors up to byte {start + max(ends)}, the file has {size}")
    rows = [shape[1] for name, shape, _ in described if name == _EMBEDDING and len(shape) == 2]
    return GGUFHeader(facts, rows[0] if rows else None, _OUTPUT in (name for name, _, _ in described))


def _tensor(cursor: _Cursor) -> tuple[bytes, Sequence[int], int]:
    """A tensor's name, its shape (the fastest axis first), and where it ends after the start of the data."""
    from gguf.constants import GGML_QUANT_SIZES  # numpy: only for those who have a GGUF file

    name = cursor.text()
    dimensions: Sequence[int] = [cursor.number("<Q") for _ in range(_small(cursor.number("<I")))]
    kind, offset = cursor.number("<I"), cursor.number("<Q")
    if kind not in GGML_QUANT_SIZES:
        raise ValueError(f"has a tensor of unknown type {kind}")
    block, width = GGML_QUANT_SIZES[kind]
    return name, dimensions, offset + -(-math.prod(dimensions) // block) * width


def _small(dimensions: int) -> int:
    if dimensions > 8:
        raise ValueError(f"has a tensor of {dimensions} dimensions")
    return dimensions
