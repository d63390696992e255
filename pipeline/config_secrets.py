"""Secrets in a config, by name or by look: they do not belong there, since run folders keep it. Imports no torch."""

from collections.abc import Iterator
from typing import Any

from pipeline.strict_yaml import KeyPath
from stages.redaction import Redactor, is_secret_name

_REVISIONS = ("revision", "commit", "sha", "sha1")
"""Keys whose forty hexadecimal digits name a commit and are no W&B key."""


def secrets_in(values: Any, redactor: Redactor, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Where a config holds what looks like a secret, and why it looks so."""
    if isinstance(values, dict):
        for name, value in values.items():
            if is_secret_name(str(name)):
                yield (*path, name), "has the name of a secret"
            else:
                yield from secrets_in(value, redactor, (*path, name))
    elif isinstance(values, list):
        for number, value in enumerate(values):
            yield from secrets_in(value, redactor, (*path, number))
        yield from _options(values, path)
    elif isinstance(values, str):
        kind = redactor.kind_of(values)
        if kind and not (kind == "W&B key" and path and path[-1] in _REVISIONS):
            yield path, f"looks like a secret ({kind})"


def _options(values: list[Any], path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """`--token x` and `--token=x` in a list that is a command line."""
    for number, value in enumerate(values):
        name, _, given = value.partition("=") if isinstance(value, str) else ("", "", "")
        if name.startswith("-") and is_secret_name(name) and (given or number + 1 < len(values)):
            yield (*path, number), f"gives a secret to '{name}'"
