"""Whether a DeepSpeed JSON of the user's says what DeepSpeed understands and our config allows. Imports no torch."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import strict_yaml
from pipeline.config import PipelineConfig
from pipeline.problems import missing_path, nearest
from pipeline.strict_yaml import Document, KeyPath
from stages.base import InputError
from stages.deepspeed_keys import ANY, AUTO, BOOL, KNOWN, MUST_BE, NUMBER, OWNED, TEXT, switched_off

_KINDS: Mapping[str, tuple[type, ...]] = {BOOL: (bool,), NUMBER: (int, float), TEXT: (str,)}


def deepspeed_errors(config: PipelineConfig) -> list[InputError]:
    """DS01: no JSON, an unknown key, a wrong value. DS02: a key that the stages decide. PATH01: no such file."""
    if config.deepspeed is None or config.deepspeed.file is None:
        return []
    path = Path(config.deepspeed.file)
    if not path.is_file():
        return [missing_path(path, "deepspeed.file")]
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        content = json.loads(text)
    except ValueError as error:
        where = f"{path}:{getattr(error, 'lineno', 1)}"
        return [InputError("DS01", f"{where}: not JSON ({error})", fix="correct that line")]
    if not isinstance(content, dict):
        return [InputError("DS01", f"{path}:1: holds no keys", fix='start with {"zero_optimization": {"stage": 2}}')]
    # JSON is YAML but for tabs, which stand between its values only; so every key has its line.
    document = strict_yaml.read(text.replace("\t", "    "), path)
    repeated = [InputError("DS01", error.problem, fix=error.fix) for error in document.errors]
    return repeated + list(_mistakes(content, KNOWN, (), document))


def _mistakes(
    content: Mapping[str, Any], known: Mapping[str, Any], path: KeyPath, at: Document
) -> Iterator[InputError]:
    for key, value in content.items():
        where = (*path, key)
        if not path and key in OWNED:
            yield from _owned(key, value, at)
        elif key not in known:
            yield _unknown(where, [*known, *(OWNED if not path else ())], at)
        elif value != AUTO:
            yield from _wrong(value, known[key], where, at)


def _wrong(value: Any, expected: Any, where: KeyPath, at: Document) -> Iterator[InputError]:
    if isinstance(expected, Mapping):
        if isinstance(value, Mapping):
            yield from _mistakes(value, expected, where, at)
        else:
            yield _wrong_value(where, value, "a section", at)
    elif isinstance(expected, tuple):
        if isinstance(value, bool) or value not in expected:
            yield _wrong_value(where, value, " or ".join(map(json.dumps, expected)), at)
    elif expected != ANY and (not isinstance(value, _KINDS[expected]) or (expected == NUMBER and value is True)):
        yield _wrong_value(where, value, expected, at)
    elif len(where) == 1 and value != MUST_BE.get(where[0], value):
        problem = f"{_place(where, at)}: '{where[0]}' is {json.dumps(value)}, but the stages bring AdamW of torch"
        yield InputError("DS02", problem, fix=f"remove '{where[0]}'")


def _owned(key: str, value: Any, at: Document) -> Iterator[InputError]:
    if not switched_off(value):
        yield InputError("DS02", f"{_place((key,), at)}: '{key}' is not for this file: {OWNED[key]}", f"remove '{key}'")


def _unknown(where: KeyPath, known: list[str], at: Document) -> InputError:
    meant = nearest(str(where[-1]), known)
    fix = f"did you mean '{_dotted((*where[:-1], meant))}'?" if meant else "remove it"
    return InputError("DS01", f"{_place(where, at)}: unknown key '{_dotted(where)}'", fix=fix)


def _wrong_value(where: KeyPath, value: Any, expected: str, at: Document) -> InputError:
    problem = f"{_place(where, at)}: '{_dotted(where)}' is {json.dumps(value):.60}, expected {expected}"
    return InputError("DS01", problem, fix=f"change '{_dotted(where)}'")


def _place(where: KeyPath, at: Document) -> str:
    while where and where not in at.places:
        where = where[:-1]
    return at.places.get(where, "")


def _dotted(where: KeyPath) -> str:
    return ".".join(map(str, where))
