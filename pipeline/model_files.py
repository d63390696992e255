"""The models that a run or a command names, looked through before torch is imported. Imports no torch.

A model of the hub is looked through if it is in the cache; else once its loader has fetched it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.config import PipelineConfig
from pipeline.parents import other_reward_models
from pipeline.problems import raise_together
from stages.base import InputError
from stages.models.hub import cached_folder
from stages.models.trusted import adapter_base, unsafe
from stages.reward_model.members import folders_of


def unsafe_models(config: PipelineConfig) -> list[InputError]:
    """SAFE01 to SAFE05 for every model that the config names; `model.trust_remote_code` holds for model.path alone."""
    terms = [folder for model in other_reward_models(config) for folder in _members(model)]
    named = [config.model.path, config.reward_model.path if config.reward_model.enabled else None, *terms]
    paths = dict.fromkeys(path for path in named if path)
    trusted = [config.model.path] if config.model.trust_remote_code else []
    return [mistake for path in paths for mistake in _with_base(path, trusted)]


def _members(model: str) -> list[str]:
    """A reward model's folder, and those of the others in it."""
    return [str(folder) for folder in folders_of(Path(model))] if Path(model).is_dir() else [model]


def require_safe_models(config: PipelineConfig) -> None:
    """Raise what `unsafe_models` finds."""
    raise_together(unsafe_models(config))


def require_safe_folders(folders: Sequence[Path], trust_remote_code: bool = False) -> None:
    """Refuse folders that a command names, and the bases of adapters in them; trust holds for the first of them.

    Raises InputError SAFE01 to SAFE05.
    """
    trusted = [str(folders[0])] if trust_remote_code else []
    if trusted and (base := adapter_base(folders[0])):
        trusted.append(base)
    raise_together([mistake for folder in folders for mistake in _with_base(str(folder), trusted)])


def _with_base(path: str, trusted: Sequence[str]) -> Iterator[InputError]:
    found = list(unsafe(cached_folder(path) or path, path in trusted))
    yield from found
    base = None if found else adapter_base(path)
    if base is not None and base != path:
        yield from unsafe(cached_folder(base) or base, base in trusted)
