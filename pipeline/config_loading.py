"""From YAML and `key=value` overrides to a PipelineConfig, all mistakes in one report. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import strict_yaml
from pipeline.config import PipelineConfig
from pipeline.config_mistakes import fill_empty_sections, find_mistakes
from pipeline.problems import missing_path, raise_together
from pipeline.strict_yaml import Document, KeyPath
from reward.settings import Settings
from stages.base import InputError
from stages.redaction import redactor


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Read a run's YAML, apply the overrides, validate.

    Raises:
        InputError: CONF01 unknown key, CONF02 wrong value, CONF03 not YAML, CONF04 duplicate key,
            CONF05 malformed override, CONF06 missing key, CONF07 secret in a config, PATH01 no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise missing_path(path, "config")
    document = strict_yaml.read(_text(path), path)
    raise_together(document.errors)
    document.values = {} if document.values is None else document.values
    if not isinstance(document.values, dict):
        raise InputError("CONF03", f"{path}: holds no `key: value` lines", fix="start with `run:` and `model:`")
    for override in overrides:
        _apply(override, document)
    raise_together(document.errors)
    fill_empty_sections(document.values)
    raise_together(find_mistakes(document, path))
    return PipelineConfig.model_validate(document.values)


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
        document.errors.append(InputError("CONF05", f"{place}: {error}", fix="correct the value"))
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
