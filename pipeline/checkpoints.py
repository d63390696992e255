"""Checkpoints that are complete or not there: written aside, hashed, synced, renamed. Imports no torch."""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.hashing import FileHashes
from pipeline.identity import Identity
from pipeline.seals import Newer, Seal, Unsealed, damages, read_seal, seal
from stages.base import InputError
from stages.durable import crash_point, delete_folder, make_folder, swap_in, sweep

_NAME = re.compile(r"^step-(\d{6,12})$")


@dataclass(frozen=True)
class Found:
    """A checkpoint as it lies on the disk."""

    step: int
    path: Path
    seal: Seal | None
    problems: list[str]
    """Why it cannot be trusted; empty when it is complete."""
    newer: bool = False
    """Whether only a newer version of this program can read it."""

    def size_on_disk(self) -> int:
        """Bytes of everything below it."""
        return sum(path.lstat().st_size for path in self.path.rglob("*") if not path.is_dir())


class CheckpointManager:
    """The checkpoints of one stage below `folder`, the newest `keep` of them.

    A folder counts once it has been renamed to `step-000200` and every file matches its manifest;
    which one is the latest is computed from that and never stored.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        identity: Identity | None = None,
        tell: Callable[[str], None] = print,
        every_byte: bool = True,
    ):
        """Without `every_byte`, what is read is checked by manifest, names and sizes alone."""
        self.folder = folder
        self.keep = keep
        self.identity = identity or Identity({})
        self.tell = tell
        self.every_byte = every_byte
        self._hashes = FileHashes()
        self._told: set[str] = set()

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Let `write` fill a folder, seal it as the checkpoint of `step`, then prune older ones.

        Raises:
            OSError: the disk is full or not writable; the previous checkpoints are untouched, the partial one is gone.
        """
        make_folder(self.folder)
        aside = self.folder / f".tmp-{step}-{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        crash_point("save.begun")
        try:
            write(aside)
            crash_point("save.written")
            seal(aside, step, self.identity)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        final = self.folder / f"step-{step:06d}"
        swap_in(aside, final)  # only a damaged one of the same step can be there
        self._prune(step)
        return final

    def latest(self) -> tuple[int, Path] | None:
        """Newest complete checkpoint as (step, folder), or None; tells which were passed over and why.

        Raises:
            InputError: CKPT05 a newer version of this program wrote one that could be the latest.
        """
        found = self.newest()
        return (found.step, found.path) if found else None

    def newest(self) -> Found | None:
        """`latest` with all that its manifest says."""
        passed_over: list[str] = [
            f"[CKPT02] {path}: save was interrupted" for path in sorted(self.folder.glob(".tmp-*"))
        ]
        for step, path in self._candidates():
            found = self._look(step, path, self.every_byte)
            if not found.problems:
                self._tell_passed_over(passed_over, f"resuming from {path}")
                return found
            if found.newer:
                fix = "use that version of rlhf-pipeline, or start the stage anew with --force"
                raise InputError("CKPT05", found.problems[0], fix=fix)
            passed_over.append(f"[CKPT01] {found.problems[0]}")
        self._tell_passed_over(passed_over, "starting from step 0")
        return None

    def all(self) -> list[Found]:
        """Every checkpoint, newest first, each file read."""
        return [self._look(step, path) for step, path in self._candidates()]

    def complete(self) -> list[tuple[int, Path]]:
        """The complete ones as (step, folder), newest first."""
        return [(found.step, found.path) for found in self.all() if not found.problems]

    def sweep(self) -> None:
        """Remove what killed saves and removals left. Only for the process that works in the folder."""
        sweep(self.folder)

    def _candidates(self) -> list[tuple[int, Path]]:
        """Step folders, newest first."""
        if not self.folder.is_dir():
            return []
        named = [(_NAME.match(path.name), path) for path in self.folder.iterdir()]
        steps = [(int(match[1]), path) for match, path in named if match]
        return sorted(((step, path) for step, path in steps if path.name == f"step-{step:06d}"), reverse=True)

    def _look(self, step: int, path: Path, every_byte: bool = True) -> Found:
        try:
            read = read_seal(path, step)
        except Unsealed as error:
            return Found(step, path, None, [str(error)], newer=isinstance(error, Newer))
        return Found(step, path, read, list(damages(path, read.files, self._hashes if every_byte else None)))

    def _tell_passed_over(self, passed_over: list[str], instead: str) -> None:
        for reason in passed_over:
            if reason not in self._told:
                self.tell(f"{reason}; skipped, {instead}")
        self._told.update(passed_over)

    def _prune(self, saved: int) -> None:
        """Remove what is older than the newest `keep` that look complete, up to the one just saved.

        A later step can only be a damaged one that was passed over; it is replaced when training gets there.
        """
        crash_point("prune.begun")
        kept = 0
        for step, path in self._candidates():
            if step > saved:
                continue
            if kept == self.keep:
                delete_folder(path)
            elif not self._look(step, path, every_byte=False).problems:
                kept += 1
        self.sweep()
        crash_point("prune.done")


def removed(found: Found) -> int:
    """Delete a checkpoint; the bytes that frees."""
    size = found.size_on_disk()
    delete_folder(found.path)
    return size
