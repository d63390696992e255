"""What opening a pickle would call, found without opening it. Imports no torch."""

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_PLAIN = {
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch._tensor _rebuild_from_type_v2",
    "torch.serialization _get_layout",
}
"""What a pickle of nothing but tensors names, besides types of storage."""
_OPERATIONS = 2_000_000
_PICKLE_LIMIT = 200_000_000
_LEGACY_PARTS = 4
"""Pickles at the start of torch's old format before the tensors' bytes: magic, version, system, object."""


def is_pickle(path: Path) -> bool:
    """Whether a file starts as a pickle or as one of torch's archives of pickles, whatever its name is."""
    with path.open("rb") as file:
        start = file.read(4)
    return start == _ZIP or (start[:1] == _PICKLE and len(start) > 1 and 2 <= start[1] <= 5)


def pickled_calls(path: Path) -> list[str]:
    """What opening a pickle could call beyond the making of tensors, as `module name`; nothing in it is run.

    Raises ValueError when it is no pickle, or one that nobody could look through in a second.
    """
    with path.open("rb") as file:
        if file.read(4) == _ZIP:
            return _unexpected(_zipped(path))
        file.seek(0)
        return _unexpected(_parts(file))


def _zipped(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            if any(name.startswith("/") or ".." in Path(name).parts for name in archive.namelist()):
                raise ValueError("an archive whose members lead out of it")
            inner = [info for info in archive.infolist() if info.filename.endswith(".pkl")]
            if not inner or sum(info.file_size for info in inner) > _PICKLE_LIMIT:
                raise ValueError("no pickle in the archive, or an enormous one")
            for info in inner:
                with archive.open(info) as file:
                    yield from _operations(file)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:  # all raised by zipfile
        raise ValueError(f"a damaged archive ({error})") from error


def _parts(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    for number in range(_LEGACY_PARTS):
        try:
            yield from _operations(file)
        except ValueError:
            if number == 0:
                raise
            return  # a plain pickle ends earlier; what follows is not looked at by an unpickler


def _operations(file: Any) -> Iterator[tuple[str, Any]]:
    yield from ((operation.name, argument) for operation, argument, _ in pickletools.genops(file))


def _unexpected(operations: Iterator[tuple[str, Any]]) -> list[str]:
    found: dict[str, None] = {}
    texts: list[str] = ["?", "?"]
    for number, (name, argument) in enumerate(operations):
        if number > _OPERATIONS:
            raise ValueError("a pickle too long to look through")
        if isinstance(argument, str):
            texts = [texts[-1], argument]
        if name in ("GLOBAL", "INST") and argument not in _PLAIN and not _is_storage(argument):
            found[argument] = None
        elif name == "STACK_GLOBAL":  # torch writes none, and what it names cannot be told without obeying
            found[" ".join(texts)] = None
        elif name.startswith("EXT"):
            found[f"extension {argument}"] = None
    return list(found)


def _is_storage(call: str) -> bool:
    module, _, name = call.partition(" ")
    return module in ("torch", "torch.storage") and name.endswith("Storage") and name.isidentifier()
