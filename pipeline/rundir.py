"""The folder of a run: who made it, its config, one subfolder per stage with a manifest. Imports no torch."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.config import STAGES, PipelineConfig
from pipeline.config_loading import dump_config, load_config
from pipeline.hashing import FileHashes
from pipeline.problems import missing_path
from stages.base import InputError
from stages.durable import crash_point, delete_folder, make_folder, sweep, sync, write_json, write_text
from stages.redaction import redactor

STEPS = (*STAGES, "evaluation")
LOG = "log.txt"
VERSIONED = ("rlhf-pipeline", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed")


@dataclass(frozen=True)
class RunDir:
    """`runs/<name>`: run.json, config.yaml, a folder per stage, results.json, report.html."""

    path: Path

    @classmethod
    def create(cls, config: PipelineConfig, command: Sequence[str]) -> "RunDir":
        """Make or reopen the folder of a run and write into it what `describe` does.

        Raises:
            InputError: RUN05 it is a link.
        """
        run = cls.of(config)
        run.describe(config, command)
        return run

    @classmethod
    def at(cls, config: PipelineConfig) -> "RunDir":
        """Where the folder of a run is, or would be."""
        return cls(Path(config.run.root) / config.run.name)

    @classmethod
    def of(cls, config: PipelineConfig) -> "RunDir":
        """Make or reopen the folder of a run.

        Raises:
            InputError: RUN05 it is a link.
        """
        run = cls.at(config)
        run.refuse_links()
        make_folder(run.path)
        return run

    def describe(self, config: PipelineConfig, command: Sequence[str]) -> None:
        """Write the resolved config and who made the run. Only for the process that has locked the folder."""
        sweep(self.path)
        write_text(self.config_file, dump_config(config))
        created = self.about.get("created", now())
        write_json(self.path / "run.json", {"name": config.run.name, "created": created, **provenance(command)})

    @classmethod
    def open(cls, path: str | Path) -> "RunDir":
        """An existing run.

        Raises:
            InputError: PATH01 there is no run in that folder; RUN05 it is a link.
        """
        run = cls(Path(path))
        if not run.config_file.is_file():
            raise missing_path(run.config_file, "run folder")
        run.refuse_links()
        return run

    def refuse_links(self) -> None:
        """Stages clear and write their folders, which must be where they seem to be.

        Raises:
            InputError: RUN05 the run folder, or a stage's folder in it, is a link.
        """
        for folder in (self.path, *(self.path / step for step in STEPS)):
            if folder.is_symlink():
                problem = f"{folder} is a link to {os.readlink(folder)}; a run writes and clears its folders"
                raise InputError("RUN05", problem, fix="give the folder itself, or another run.name or run.root")

    @property
    def config_file(self) -> Path:
        """The resolved config that every stage reads."""
        return self.path / "config.yaml"

    @property
    def about(self) -> dict[str, Any]:
        """Content of run.json."""
        return read_json(self.path / "run.json")

    @property
    def results_file(self) -> Path:
        """Held-out results of all models and the cost of each stage."""
        return self.path / "results.json"

    def config(self) -> PipelineConfig:
        """The resolved config."""
        return load_config(self.config_file)

    def hashes(self) -> FileHashes:
        """Digests of this run's inputs, remembered in the run folder."""
        return FileHashes(self.path / ".hashes.json")

    def stage(self, name: str) -> "StageDir":
        """The folder of one stage, whether or not it exists."""
        return StageDir(self.path / name)


@dataclass(frozen=True)
class StageDir:
    """One stage's folder: log.txt, metrics.jsonl, samples.jsonl, stage.json, final/, checkpoints/."""

    path: Path

    @property
    def final(self) -> Path:
        """The stage's product, loadable by transformers."""
        return self.path / "final"

    @property
    def checkpoints(self) -> Path:
        """Folder of resumable states."""
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        """Everything the stage's process printed."""
        return self.path / LOG

    @property
    def manifest(self) -> dict[str, Any]:
        """Content of stage.json; empty when the stage never started."""
        return read_json(self.path / "stage.json")

    @property
    def finished(self) -> bool:
        """Whether the stage ran to its end."""
        return self.manifest.get("status") == "finished"

    def write_manifest(self, content: dict[str, Any]) -> None:
        """Replace stage.json in one step."""
        make_folder(self.path)
        write_json(self.path / "stage.json", redactor().tree(content))

    def sweep(self) -> None:
        """Remove what killed attempts left half written."""
        sweep(self.path)

    def clear(self) -> None:
        """Remove everything an earlier attempt left but the log, the manifest first."""
        if (self.path / "stage.json").exists():
            (self.path / "stage.json").unlink()
            sync(self.path)
            crash_point("clear.manifest_removed")
        for item in sorted(self.path.iterdir()) if self.path.is_dir() else []:
            if item.is_dir() and not item.is_symlink():
                delete_folder(item)
            elif item.name != LOG:
                item.unlink(missing_ok=True)


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """What ran, with which versions, from which revision, where."""
    return {
        "command": redactor().command(command),
        "versions": versions(),
        "git": _revision(),
        "platform": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def now() -> str:
    """Current time, ISO 8601 with zone."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file this program wrote; empty when there is none.

    Raises:
        InputError: RUN02 the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError("RUN02", f"{path}: not JSON ({error})", fix="delete the file and run again") from error


def _revision() -> str | None:
    source = Path(__file__).resolve().parent
    command = ["git", "-C", str(source), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, start_new_session=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
