"""The manifest that makes a folder a checkpoint: what is in it, of which step, made from what. Imports no torch."""

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.hashing import FileHashes, files_of, sha256_file, sha256_of
from pipeline.identity import Identity
from stages.durable import crash_point, sync, sync_tree

MANIFEST = "manifest.json"
FORMAT = 2
"""2: the identity is readable, field by field."""


@dataclass(frozen=True)
class Seal:
    """A manifest that is whole: its own digest fits, its types are right. The files are another matter."""

    step: int
    created: str
    identity: Identity
    files: Mapping[str, tuple[str, int]]
    """Digest and size in bytes by name."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files.values())


class Unsealed(Exception):
    """A folder whose manifest cannot be trusted, and why."""


class Newer(Unsealed):
    """A whole manifest of a format that only a newer version reads."""


def seal(folder: Path, step: int, identity: Identity) -> None:
    """Hash and sync every file of a folder, then write the manifest and sync that.

    Hashing runs beside the waiting for the disk, so that it costs little more than the longer of the two.
    """
    paths = files_of(folder)
    with ThreadPoolExecutor(1) as pool:
        digests = pool.map(sha256_file, paths.values())
        sync_tree(folder)
        files = {
            name: {"sha256": digest, "bytes": path.stat().st_size}
            for (name, path), digest in zip(paths.items(), digests, strict=True)
        }
    crash_point("seal.hashed")
    content = {
        "format": FORMAT,
        "step": step,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "identity": identity.plain(),
        "files": files,
    }
    manifest = {**content, "seal": sha256_of(content)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    crash_point("seal.written")
    sync(folder / MANIFEST)
    sync(folder)
    crash_point("seal.synced")


def read_seal(folder: Path, step: int) -> Seal:
    """The manifest of a checkpoint of `step`.

    Raises:
        Unsealed: it cannot be trusted.
        Newer: it is whole and of a newer format.
    """
    content = _content(folder)
    if content["format"] != FORMAT:
        if isinstance(content["format"], int) and content["format"] > FORMAT:
            raise Newer(f"{folder}: format {content['format']} of a newer version, this one reads up to {FORMAT}")
        raise Unsealed(f"{folder}: format {content['format']} of an earlier version, this one reads {FORMAT}")
    try:
        files = {str(name): (str(file["sha256"]), int(file["bytes"])) for name, file in content["files"].items()}
        found = Seal(int(content["step"]), str(content["created"]), Identity.of_plain(content["identity"]), files)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Unsealed(f"{folder}/{MANIFEST}: not readable") from None
    if found.step != step:
        raise Unsealed(f"{folder}/{MANIFEST}: of step {found.step}, the folder's name says {step}")
    return found


def _content(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if folder.is_symlink() or not folder.is_dir():
        raise Unsealed(f"{folder}: not a folder of its own")
    if path.is_symlink() or not path.is_file():
        raise Unsealed(f"{folder}/{MANIFEST}: missing")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop("seal")
        altered = digest != sha256_of(content) or "format" not in content
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Unsealed(f"{folder}/{MANIFEST}: not readable") from None
    if altered:
        raise Unsealed(f"{folder}/{MANIFEST}: altered since it was written")
    return content


def damages(folder: Path, expected: Mapping[str, tuple[str, int]], hashes: FileHashes | None) -> Iterator[str]:
    """Every file that is not as it was written; without `hashes` only what sizes and names tell."""
    present = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if not _is_folder(p)}
    present.pop(MANIFEST, None)
    for name in sorted(expected.keys() | present.keys()):
        found = _damage(present.get(name), expected.get(name), hashes)
        if found:
            yield f"{folder}/{name}: {found}"


def _damage(path: Path | None, expected: tuple[str, int] | None, hashes: FileHashes | None) -> str | None:
    if path is None:
        return "missing"
    if expected is None:
        return "not in the manifest"
    if path.is_symlink() or not path.is_file():
        return "not a file of its own"
    digest, size = expected
    try:
        if path.stat().st_size != size:
            return f"{path.stat().st_size} bytes, manifest says {size}"
        if hashes and hashes.file(path) != digest:
            return "sha256 differs from manifest"
    except OSError as error:
        return f"cannot be read ({os.strerror(error.errno or 0)})"
    return None


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
