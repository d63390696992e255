"""A disk of a chosen size, for what happens when it is full. Needs root on Linux."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PAGE = 4096


@contextmanager
def small_disk(folder: Path, size: int, read_only: bool = False) -> Iterator[Path | None]:
    """A file system in memory of `size` bytes mounted on `folder`; None where this process may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={size}" + (",ro" if read_only else "")
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    mounted = False
    with suppress(OSError):
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """A file that takes all but `leave` bytes of the disk that `folder` is on, which others may be writing to."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        while (take := shutil.disk_usage(folder).free - leave) > 0:
            try:
                os.posix_fallocate(file.fileno(), 0, take)
                break
            except OSError as error:
                if error.errno != errno.ENOSPC:  # else somebody wrote since it was measured
                    raise
    return ballast
