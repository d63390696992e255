"""The data files of all enabled stages, read before anything else is done with them. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import PipelineConfig
from pipeline.lineage import data_of, enabled_steps
from pipeline.problems import missing_path
from stages.base import InputError
from stages.data import Row


@dataclass
class DataFound:
    """The rows of every readable file by role, such as `prompts.train`, and what is wrong with the others."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    errors: list[InputError] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        return {role: len(rows) for role, rows in self.rows.items()}


def read_data(config: PipelineConfig, deferred: bool) -> DataFound:
    """Read every data file that an enabled stage uses; `deferred` files may still be made by the prepare script."""
    from stages.classification import read_sft_rows
    from stages.data import read_preferences, read_prompts

    readers = {
        "demonstrations": lambda path: read_sft_rows(path, config.sft),
        "preferences": read_preferences,
        "prompts": read_prompts,
    }
    found = DataFound()
    for role, path in _data_files(config, found).items():
        if not path.is_file():
            if not deferred:
                found.errors.append(missing_path(path, f"data.{role}"))
            continue
        reader = readers[role.partition(".")[0]]
        try:
            found.rows[role] = reader(path)
        except InputError as error:
            found.errors.append(error)
    return found


def _data_files(config: PipelineConfig, found: DataFound) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for step in enabled_steps(config):
        try:
            files |= data_of(config, step)
        except InputError as error:
            found.errors.append(error)
    return files
