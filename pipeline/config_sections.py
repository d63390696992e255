"""How the config nests: which fields of a section are sections themselves. Imports no torch."""

import types
import typing
from collections.abc import Iterator
from typing import Any

from pipeline.strict_yaml import KeyPath
from reward.settings import Settings


def sections(model: type[Settings]) -> Iterator[tuple[str, type[Settings], bool]]:
    """Fields of a section that are sections: name, class, whether it is a list of them."""
    for name, info in model.model_fields.items():
        options = typing.get_args(info.annotation) if is_union(info.annotation) else (info.annotation,)
        for option in options:
            listed = typing.get_origin(option) is list
            kind = typing.get_args(option)[0] if listed else option
            if isinstance(kind, type) and issubclass(kind, Settings):
                yield name, kind, listed


def is_union(annotation: Any) -> bool:
    """Whether one of several types may stand there."""
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def children(values: dict[str, Any], model: type[Settings], path: KeyPath) -> Iterator[tuple[Any, type, KeyPath]]:
    """What stands where sections belong: value, class of the section, path."""
    for name, kind, listed in sections(model):
        value = values.get(name)
        if listed and isinstance(value, list):
            yield from ((item, kind, (*path, name, i)) for i, item in enumerate(value))
        elif not listed and value is not None and (isinstance(value, dict) or not _may_be_word(model, name)):
            yield value, kind, (*path, name)


def _may_be_word(model: type[Settings], name: str) -> bool:
    """Whether a word may stand where a section may."""
    return any(typing.get_origin(o) is typing.Literal for o in typing.get_args(model.model_fields[name].annotation))
