"""What safetensors files say without being loaded: names, shapes, first values. Imports no torch."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROBED = 32
"""Values of a tensor that tell whose weights it is of."""
_SIZES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""

    def first_values(self) -> str | None:
        """Its first values rounded to bfloat16, as hexadecimal digits; None for other types than floats."""
        size = _SIZES.get(self.dtype)
        if size is None:
            return None
        count = 1
        for length in self.shape:
            count *= length
        with self.file.open("rb") as file:
            file.seek(self.offset)
            data = file.read(size * min(count, PROBED))
        if self.dtype == "BF16":
            return data.hex()
        values = struct.unpack(f"<{len(data) // size}{'f' if size == 4 else 'e'}", data)
        return b"".join(map(_bfloat16, values)).hex()


def tensors_in(folder: str | Path) -> Mapping[str, StoredTensor]:
    """The tensors of all safetensors files of a folder by name; none where there is no such folder or file."""
    found: dict[str, StoredTensor] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            offset = 8 + length + entry["data_offsets"][0]
            found[name] = StoredTensor(path, entry["dtype"], tuple(entry["shape"]), offset)
    return found


def _bfloat16(value: float) -> bytes:
    """Rounded to the nearest, ties to even, as torch does."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return struct.pack("<H", ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) & 0xFFFF)
