"""What a rank is told, as a file: the command, its environment, where to report. Light: each rank reads it first.

The file can be read by its owner alone, in a folder that its owner alone can enter. Command lines, which every user of
a host can see, hold only its path.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.hashing import sha256_of

FOLDER = ".launch"
"""Folder in a run's folder, there while a stage runs."""


@dataclass(frozen=True)
class JobFile:
    """All that a rank needs to start, once a launcher has told it where this is."""

    command: list[str]
    folder: str
    """Where the command runs; the same path on every host."""
    environment: dict[str, str]
    address: tuple[str, int]
    """Host address and port at which `rlhf run` waits for the ranks."""
    key: str
    """Hexadecimal; who knows it belongs to the job."""
    join_timeout_s: float
    lost_after_s: float
    interface: str | None = None
    master_address: str | None = None
    master_port: int | None = None

    @property
    def digest(self) -> str:
        """Of the variables; each rank tells what it got."""
        return sha256_of(self.environment)

    @classmethod
    def read(cls, path: Path) -> "JobFile":
        """Raises OSError, or ValueError when the content is something else."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**content, "address": tuple(content["address"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a job file") from error


@contextmanager
def private_folder(run: Path) -> Iterator[Path]:
    """A folder in the run's that only its owner can enter; gone afterwards."""
    folder = (run / FOLDER).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    folder.chmod(0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_private(path: Path, job: JobFile) -> None:
    """Write a job file, readable by its owner alone from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(job), file)
        file.flush()
        os.fsync(file.fileno())


def new_key() -> str:
    """A key that nobody can guess."""
    return secrets.token_hex(32)
