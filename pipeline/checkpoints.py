"""Checkpoints that are complete or not there: written aside, hashed, synced, renamed. Imports no torch."""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.hashing import delete_folder, files_of, sha256_file, sha256_of

MANIFEST = "manifest.json"
FORMAT = 1
_NAME = re.compile(r"^step-(\d{6,})$")


class CheckpointManager:
    """The checkpoints of one stage below `folder`, the newest `keep` of them.

    A folder counts once it has been renamed to `step-000200` and every file matches its manifest;
    which one is the latest is computed from that and never stored.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        identity: Mapping[str, Any] | None = None,
        tell: Callable[[str], None] = print,
    ):
        self.folder = folder
        self.keep = keep
        self.identity = dict(identity or {})
        self.tell = tell
        self._told: set[str] = set()

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Let `write` fill a folder, seal it as the checkpoint of `step`, then prune older ones.

        Raises:
            OSError: the disk is full or not writable; the previous checkpoints are untouched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f".tmp-{step}-{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            write(aside)
            self._seal(aside, step)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        final = self.folder / f"step-{step:06d}"
        delete_folder(final)  # only a damaged one of the same step can be there
        os.rename(aside, final)
        _sync(self.folder)
        self._prune()
        return final

    def latest(self) -> tuple[int, Path] | None:
        """Newest complete checkpoint as (step, folder), or None; tells which were passed over and why."""
        passed_over: list[str] = [
            f"[CKPT02] {path}: save was interrupted" for path in sorted(self.folder.glob(".tmp-*"))
        ]
        for step, path in self._candidates():
            problem = self._problem(step, path)
            if problem is None:
                self._tell_passed_over(passed_over, f"resuming from {path}")
                return step, path
            passed_over.append(f"[CKPT01] {problem}")
        self._tell_passed_over(passed_over, "starting from step 0")
        return None

    def _candidates(self) -> list[tuple[int, Path]]:
        """Step folders, newest first."""
        if not self.folder.is_dir():
            return []
        named = [(_NAME.match(path.name), path) for path in self.folder.iterdir() if path.is_dir()]
        return sorted(((int(match[1]), path) for match, path in named if match), reverse=True)

    def _seal(self, folder: Path, step: int) -> None:
        files = {
            name: {"sha256": sha256_file(path), "bytes": path.stat().st_size} for name, path in files_of(folder).items()
        }
        content = {
            "format": FORMAT,
            "step": step,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "identity": self.identity,
            "files": files,
        }
        manifest = {**content, "seal": sha256_of(content)}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        for path in [*files_of(folder).values(), *(p for p in folder.rglob("*") if p.is_dir()), folder]:
            _sync(path)

    def _problem(self, step: int, folder: Path) -> str | None:
        """Why a checkpoint cannot be trusted, or None."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            seal = manifest.pop("seal")
            files = manifest["files"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return f"{folder}: no readable {MANIFEST}"
        if manifest.get("format") != FORMAT:
            return f"{folder}: format {manifest.get('format')}, this version reads {FORMAT}"
        if seal != sha256_of(manifest) or manifest["step"] != step:
            return f"{folder}/{MANIFEST}: altered since it was written"
        if manifest["identity"] != self.identity:
            return f"{folder}: belongs to another configuration"
        return _damaged(folder, files)

    def _tell_passed_over(self, passed_over: list[str], instead: str) -> None:
        for reason in passed_over:
            if reason not in self._told:
                self.tell(f"{reason}; skipped, {instead}")
        self._told.update(passed_over)

    def _prune(self) -> None:
        for _, path in self._candidates()[self.keep :]:
            delete_folder(path)
        for leftover in (*self.folder.glob(".tmp-*"), *self.folder.glob(".del-*")):
            shutil.rmtree(leftover, ignore_errors=True)


def _damaged(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    present = {name: path for name, path in files_of(folder).items() if name != MANIFEST}
    for name in sorted(files.keys() ^ present.keys()):
        return f"{folder}/{name}: {'missing' if name in files else 'not in the manifest'}"
    for name, expected in files.items():
        size = present[name].stat().st_size
        if size != expected["bytes"]:
            return f"{folder}/{name}: {size} bytes, manifest says {expected['bytes']}"
        if sha256_file(present[name]) != expected["sha256"]:
            return f"{folder}/{name}: sha256 differs from manifest"
    return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
