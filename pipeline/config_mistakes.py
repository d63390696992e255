"""What is wrong with a config: each mistake, its place, what was found and expected. Imports no torch."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.config import PipelineConfig
from pipeline.config_rest import without
from pipeline.config_secrets import secrets_in
from pipeline.config_sections import children, is_union, sections
from pipeline.problems import nearest
from pipeline.strict_yaml import Document, KeyPath
from reward.settings import Settings
from stages.base import InputError
from stages.redaction import redactor

_PLAINER = {
    "string": "text (a number as text is quoted: '1')",
    "boolean, unable to interpret input": "true or false",
    "number, unable to parse string as a number": "a number",
    "integer, unable to parse string as an integer": "a whole number",
    "integer, got a number with a fractional part": "a whole number",
    "boolean": "true or false",
    "number": "a number",
    "integer": "a whole number",
    "dictionary": "a section of `key: value` lines",
    "list": "a list",
}

Mistake = tuple[KeyPath, InputError]


def fill_empty_sections(values: dict[str, Any], model: type[Settings] = PipelineConfig) -> None:
    """Replace null sections by empty ones: a section whose lines are all comments means the defaults."""
    for name, kind, listed in sections(model):
        optional = is_union(model.model_fields[name].annotation)
        if name in values and values[name] is None and not listed and not optional:
            values[name] = {}
        if isinstance(values.get(name), dict):
            fill_empty_sections(values[name], kind)


def find_mistakes(document: Document, source: Path) -> list[Mistake]:
    """All mistakes of a config document with the keys they are about, in the order of its lines."""
    misshapen = list(_misshapen_sections(document, PipelineConfig, ()))
    shaped = without(document.values, [path for path, _ in misshapen])
    unknown = list(_unknown_keys(shaped, PipelineConfig, ()))
    details = [d for d in _all_details(shaped, unknown) if d["loc"] not in dict(misshapen)]
    secrets = dict(secrets_in(document.values, redactor()))
    document.places = _without_values(document, secrets)
    unknown = [path for path in unknown if path not in secrets and not _is_explained(path, details)]
    mistakes = misshapen + [m for m in _wrong_values(details, document, source) if m[0] not in secrets]
    mistakes += [(path, _secret(path, why, document)) for path, why in secrets.items()]
    mistakes += [(path, _unknown_key(path, document)) for path in unknown]
    order = {path: i for i, path in enumerate(document.places)}
    mistakes.sort(key=lambda mistake: order.get(_placed(mistake[0], document), -1))
    return mistakes


def _unknown_keys(values: dict[str, Any], model: type[Settings], path: KeyPath) -> Iterator[KeyPath]:
    yield from ((*path, name) for name in values if name not in model.model_fields)
    for value, kind, where in children(values, model, path):
        if isinstance(value, dict):
            yield from _unknown_keys(value, kind, where)


def _misshapen_sections(document: Document, model: type[Settings], path: KeyPath) -> Iterator[Mistake]:
    for value, kind, where in children(_at(document.values, path), model, path):
        if isinstance(value, dict):
            yield from _misshapen_sections(document, kind, where)
        else:
            yield where, _wrong_value(where, _show(value), "a section of `key: value` lines", document)


def _at(values: Any, path: KeyPath) -> Any:
    for part in path:
        values = values[part]
    return values


def _all_details(values: dict[str, Any], unknown: Sequence[KeyPath]) -> list[ErrorDetails]:
    """Pydantic's findings; a second look without the unknown keys finds what those had hidden."""
    details = _details(values)
    seen = {(d["loc"], d["msg"]) for d in details}
    if unknown:
        details += [d for d in _details(without(values, unknown)) if (d["loc"], d["msg"]) not in seen]
    return [d for d in details if d["type"] != "extra_forbidden" and not _is_about_word(d, values)]


def _is_about_word(detail: ErrorDetails, values: dict[str, Any]) -> bool:
    """Whether it says which words could stand where a section is given, which may be there too."""
    path = _existing(detail["loc"], values)
    return detail["type"] == "literal_error" and len(path) < len(detail["loc"]) and isinstance(_at(values, path), dict)


def _details(values: dict[str, Any]) -> list[ErrorDetails]:
    try:
        PipelineConfig.model_validate(values)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _is_explained(path: KeyPath, details: Sequence[ErrorDetails]) -> bool:
    """Whether the section itself says more about this key than that it is unknown."""
    return any(d["loc"] == path[:-1] and d["msg"].startswith(f"Value error, {path[-1]} ") for d in details)


# Rendering


def _wrong_values(details: Sequence[ErrorDetails], document: Document, source: Path) -> list[Mistake]:
    """One mistake per key; the alternatives of a union are joined by `or`."""
    expectations: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in details:
        path = detail["loc"] if detail["type"] == "missing" else _existing(detail["loc"], document.values)
        expectations.setdefault(path, []).append(detail)
    return [(path, _rendered(path, group, document, source)) for path, group in expectations.items()]


def _existing(loc: KeyPath, values: Any) -> KeyPath:
    """The parts of pydantic's location that are a path in the config; the others name members of unions."""
    path: KeyPath = ()
    for part in loc:
        inside = part in values if isinstance(values, dict) else isinstance(values, list) and isinstance(part, int)
        if inside:
            values, path = values[part], (*path, part)
    return path


def _rendered(path: KeyPath, group: Sequence[ErrorDetails], document: Document, source: Path) -> InputError:
    first = group[0]
    if re.fullmatch(r"[A-Z]+[0-9]{2}", first["type"]):  # a validator that gives its code, key and fix
        key = (*path, first["ctx"]["key"])
        return InputError(first["type"], f"{_place(key, document, source)}: {first['msg']}", fix=first["ctx"]["fix"])
    if first["type"] == "missing":
        problem = f"{_place(path[:-1], document, source)}: key '{_dotted(path)}' is missing"
        return InputError("CONF06", problem, fix=f"add '{_dotted(path)}'; `rlhf schema` describes it")
    if first["type"] == "value_error":
        told = first["msg"].removeprefix("Value error, ")
        where = f"{_dotted(path)}: " if path else ""
        fix = f"change '{_dotted(path)}'" if path else "change one of them"
        return InputError("CONF02", f"{_place(path, document, source)}: {where}{told}", fix=fix)
    expected = " or ".join(dict.fromkeys(_expected(detail) for detail in group))
    return _wrong_value(path, _show(_at(document.values, path)), expected, document)


def _expected(detail: ErrorDetails) -> str:
    told = detail["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    if detail["type"] == "too_short":
        return f"at least {detail['ctx']['min_length']} of them"
    if detail["type"] == "string_pattern_mismatch":
        return f"text like {detail['ctx']['pattern']}"
    if detail["type"] == "model_type":
        return "a section of `key: value` lines"
    return _PLAINER.get(told, told)


def _wrong_value(path: KeyPath, found: str, expected: str, document: Document) -> InputError:
    problem = f"{_place(path, document)}: '{_dotted(path)}' is wrong; found {found}, expected {expected}"
    return InputError("CONF02", problem, fix=f"change '{_dotted(path)}'")


def _unknown_key(path: KeyPath, document: Document) -> InputError:
    meant = _meant(path)
    fix = f"did you mean '{meant}'?" if meant else "remove it; `rlhf schema` prints all keys"
    return InputError("CONF01", f"{_place(path, document)}: unknown key '{_dotted(path)}'", fix=fix)


def _without_values(document: Document, secrets: Iterable[KeyPath]) -> dict[KeyPath, str]:
    """The places with overrides that bring a secret shortened to their key."""
    telling = {document.places.get(_placed(path, document), "") for path in secrets}
    shown = {place: f"{place.partition('=')[0]}=...'" for place in telling if place.startswith("override ")}
    return {path: shown.get(place, place) for path, place in document.places.items()}


def _secret(path: KeyPath, why: str, document: Document) -> InputError:
    problem = f"{_place(path, document)}: '{_dotted(path)}' {why}; run folders keep the config"
    return InputError("CONF07", problem, fix="remove it and set it in the environment, as WANDB_API_KEY")


def _meant(path: KeyPath) -> str | None:
    """The nearest key of the same section, else that very name elsewhere, else the nearest anywhere."""
    known = [dotted for dotted, _ in _known_keys(PipelineConfig, "")]
    section = "".join(f"{part}." for part in path[:-1] if isinstance(part, str))
    here = {dotted[len(section) :]: dotted for dotted in known if dotted.startswith(section)}
    sibling = nearest(str(path[-1]), [name for name in here if "." not in name])
    if sibling:
        return _dotted((*path[:-1], sibling))
    elsewhere = [dotted for dotted in known if dotted.rpartition(".")[2] == path[-1]]
    return " or ".join(elsewhere[:3]) or nearest(_dotted(path), known)


def _known_keys(model: type[Settings], prefix: str) -> Iterator[tuple[str, type[Settings]]]:
    yield from ((prefix + name, model) for name in model.model_fields)
    for name, kind, _ in sections(model):
        yield from _known_keys(kind, f"{prefix}{name}.")


def _placed(path: KeyPath, document: Document) -> KeyPath:
    while path and path not in document.places:
        path = path[:-1]
    return path


def _place(path: KeyPath, document: Document, source: Path | None = None) -> str:
    placed = _placed(path, document)
    below = [place for known, place in document.places.items() if known[: len(path)] == path] if path else []
    if below and len(placed) < len(path):
        return below[0]  # a section that only an override writes to
    return str(source) if source and not placed else document.places.get(placed, str(source))


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _show(value: Any) -> str:
    if isinstance(value, dict | list):
        kind = "a section" if isinstance(value, dict) else "a list"
        return f"{kind} ({len(value)} entries)"
    if value is None:
        return "nothing"
    return repr(value).lower() if isinstance(value, bool) else repr(value)
