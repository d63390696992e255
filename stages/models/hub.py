"""Models of the hub as folders: fetched without pickles, at the revision that is asked for. Imports no torch."""

import re
from functools import lru_cache
from pathlib import Path

from stages.base import InputError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?(?:@[\w./-]+)?")
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
_UNWANTED = ["*/*", "consolidated*", "*.fp16.*", "*.bf16.*"]
"""Other formats and copies of the same weights."""


def is_hub_id(path: str) -> bool:
    """Whether a model path can only mean a model of the hub: `name`, `organisation/name`, either with `@revision`."""
    return _ID.fullmatch(path) is not None and not Path(path).exists()


@lru_cache(maxsize=32)  # one revision for a whole process, whatever happens on the hub meanwhile
def folder_of(path: str, code: bool = False) -> str:
    """A path as it is; of a hub id the folder of its snapshot, downloaded if need be, with its Python files if `code`.

    Raises InputError PATH01 when it cannot be had.
    """
    if not is_hub_id(path):
        return path
    try:
        return _snapshot(path, [*_WANTED, *(["*.py"] if code else [])], offline=False)
    except Exception as error:  # a client of the network fails in ways of its own
        problem = f"no model at '{path}' ({next(iter(str(error).splitlines()), type(error).__name__)})"
        raise InputError("PATH01", problem, fix="correct model.path") from error


def cached_folder(path: str) -> str | None:
    """The folder of a hub id's snapshot if it was downloaded before."""
    try:
        return _snapshot(path, _WANTED, offline=True) if is_hub_id(path) else None
    except Exception:  # whatever is wrong, it is not there
        return None


def name_and_revision(path: str) -> tuple[str, str | None]:
    """A hub id without its `@revision`, and that; of a folder its path."""
    name, _, revision = path.partition("@") if is_hub_id(path) else (path, "", "")
    return name, revision or None


def pinned(name: str, revision: str | None) -> str:
    """The path that `name_and_revision` takes apart; of a folder the folder."""
    return f"{name}@{revision}" if revision and is_hub_id(name) else name


def _snapshot(path: str, patterns: list[str], offline: bool) -> str:
    from huggingface_hub import snapshot_download  # not for those who have folders

    name, revision = name_and_revision(path)
    return snapshot_download(
        name, revision=revision, allow_patterns=patterns, ignore_patterns=_UNWANTED, local_files_only=offline
    )
