"""Files and folders that are whole or not there, whenever the process or the machine stops. Imports no torch."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CRASH_AT = "RLHF_CRASH_AT"
"""Environment variable with the name of a crash point; the proofs of recovery set it."""
LEFTOVERS = (".tmp-*", ".del-*")
"""Names of what a killed process leaves: never complete, never read."""


def crash_point(name: str) -> None:
    """End the process as SIGKILL would, without any clean-up, where RLHF_CRASH_AT says so."""
    if os.environ.get(CRASH_AT) == name:
        os._exit(137)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until a folder with all that is below it is on the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if not path.is_symlink():
            sync(path)
    sync(folder)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, and wait until their names are on the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file that is either the old one or the new one after a crash.

    Raises:
        OSError: it could not be written; the old one is untouched.
    """
    aside = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            crash_point("file.written")
            os.fsync(file.fileno())
        crash_point("file.synced")
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    crash_point("file.replaced")
    sync(path.parent)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """`write_text` of plain data."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def delete_folder(folder: Path) -> None:
    """Remove a folder so that a crash leaves all of it or none under its name."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        aside = folder.with_name(f".del-{folder.name}-{os.getpid()}")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(folder, aside)
        crash_point("delete.renamed")
        shutil.rmtree(aside)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """An empty folder to fill; when the block ends well it is on the disk and takes the place of `target`.

    A crash leaves the old folder, or none for the moment between removing it and renaming the new one.

    Raises:
        OSError: it could not be written; the old folder is untouched.
    """
    aside = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    make_folder(target.parent)
    aside.mkdir()
    try:
        yield aside
        crash_point("folder.written")
        sync_tree(aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    swap_in(aside, target)


def swap_in(aside: Path, target: Path) -> None:
    """Let a whole, synced folder take the place of another, and wait until its name is on the disk."""
    crash_point("folder.synced")
    delete_folder(target)
    crash_point("folder.old_removed")
    os.rename(aside, target)
    crash_point("folder.renamed")
    sync(target.parent)
    crash_point("folder.committed")


def sweep(folder: Path) -> list[str]:
    """Remove what killed processes left in a folder; the names of it. The caller has the folder to itself."""
    found = [path for pattern in LEFTOVERS for path in sorted(folder.glob(pattern))]
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return [path.name for path in found]
