"""From YAML and `key=value` overrides to a PipelineConfig, all mistakes in one report. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import strict_yaml
from pipeline.config import PipelineConfig
from pipeline.config_mistakes import Mistake, fill_empty_sections, find_mistakes
from pipeline.config_rest import rest_of
from pipeline.problems import missing_path, raise_together
from pipeline.strict_yaml import Document, KeyPath
from reward.settings import Settings
from stages.base import InputError
from stages.redaction import redactor


@dataclass(frozen=True)
class LoadedConfig:
    """A config file with its overrides, mistakes included."""

    mistakes: list[Mistake]
    """Where and what, in the order of the lines."""
    rest: PipelineConfig | None
    """The config without what is mistaken, so that its other parts can be looked at; None where that is nothing."""

    def valid(self) -> PipelineConfig:
        """The config. Raises InputError with all mistakes, if there are any."""
        raise_together([error for _, error in self.mistakes])
        return self.rest

    def doubts(self, *keys: KeyPath) -> bool:
        """Whether a mistake lies at, above or below one of these keys."""
        paths = [path for path, _ in self.mistakes]
        return any(path and path[: len(key)] == key[: len(path)] for path in paths for key in keys)


_NOWHERE: KeyPath = ("",)
"""The key of a mistake in the text, such as a repeated line, that is about no value."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Read a run's YAML, apply the overrides, validate.

    Raises:
        InputError: CONF01 unknown key, CONF02 wrong value, CONF03 not YAML, CONF04 duplicate key,
            CONF05 malformed override, CONF06 missing key, CONF07 secret in a config, BATCH02 batches that do not
            divide, PATH01 no such file.
    """
    return read_config(path, overrides).valid()


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """The config with its mistakes. Raises InputError CONF03, PATH01 where there is no document to look at."""
    path = Path(path)
    if not path.is_file():
        raise missing_path(path, "config")
    document = strict_yaml.read(_text(path), path)
    if any(error.code == "CONF03" for error in document.errors):
        raise_together(document.errors)
    document.values = {} if document.values is None else document.values
    if not isinstance(document.values, dict):
        raise InputError("CONF03", f"{path}: holds no `key: value` lines", fix="start with `run:` and `model:`")
    for override in overrides:
        _apply(override, document)
    fill_empty_sections(document.values)
    found = find_mistakes(document, path)
    missing = [key for key, error in found if error.code == "CONF06"]
    mistaken = [key for key, error in found if error.code != "CONF06"]
    unread = [(_NOWHERE, error) for error in document.errors]
    return LoadedConfig([*unread, *found], rest_of(document.values, mistaken, missing))


def dump_config(config: PipelineConfig) -> str:
    """The resolved config as YAML that load_config reads back into an equal config."""
    return strict_yaml.write(plain(config))


def config_schema() -> dict[str, Any]:
    """JSON schema of the config, with the description of every field."""
    return PipelineConfig.model_json_schema()


def plain(settings: Settings) -> dict[str, Any]:
    """A config section as dictionaries, lists and scalars."""
    return settings.model_dump(mode="json")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        problem = f"{path}: not UTF-8 text (byte {error.start})"
        raise InputError("CONF03", problem, fix="save the file as UTF-8") from error


# Overrides


def _apply(override: str, document: Document) -> None:
    key, equals, text = override.partition("=")
    path = tuple(_index(part) for part in key.strip().split("."))
    place = f"override '{redactor().command([override])[0]}'"
    if not equals or not all(str(part) for part in path):
        found = f"{place}: expected key=value"
        document.errors.append(InputError("CONF05", found, fix="write for example ppo.kl_coef=0.1"))
        return
    try:
        value = strict_yaml.scalar(text)
        _set(document.values, path, value)
    except InputError as error:
        told = str(error).partition("] value:1: ")[2].rpartition("; fix: ")[0]
        document.errors.append(InputError("CONF05", f"{place}: {told}", fix="correct the value"))
        return
    except (TypeError, IndexError, KeyError):
        found = f"{place}: '{key}' leads through a value that has no such part"
        document.errors.append(InputError("CONF05", found, fix="`rlhf schema` prints all keys"))
        return
    document.places = {known: at for known, at in document.places.items() if known[: len(path)] != path}
    document.places[path] = place


def _index(part: str) -> str | int:
    return int(part) if part.isdecimal() else part


def _set(values: Any, path: KeyPath, value: Any) -> None:
    for part in path[:-1]:
        if isinstance(values, dict) and values.get(part) is None:
            values[part] = {}
        values = values[part]
    if isinstance(values, list):
        values[path[-1]] = value
    elif isinstance(values, dict):
        values[str(path[-1])] = value
    else:
        raise TypeError
