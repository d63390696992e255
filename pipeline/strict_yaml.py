"""YAML without its surprises: 1e-6 is a number, `no` a word, keys occur once, values know their line."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stages.base import InputError

KeyPath = tuple[str | int, ...]
MAX_DEPTH = 20

_SCALARS = (
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        re.compile(
            r"^(?:[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.[0-9]+(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
)
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null", "str", "seq", "map")}


class _Loader(yaml.SafeLoader):
    """SafeLoader whose plain scalars are only: booleans true/false, decimal numbers, null, text."""

    yaml_implicit_resolvers: dict[str, list] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes exactly what `_Loader` would not read back as text."""

    yaml_implicit_resolvers: dict[str, list] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, _pattern, list(_first))
    _Dumper.add_implicit_resolver(_tag, _pattern, list(_first))


@dataclass
class Document:
    """Values of a YAML text, the place of each, and what is wrong with the text itself."""

    values: Any
    places: dict[KeyPath, str] = field(default_factory=dict)
    errors: list[InputError] = field(default_factory=list)


def read(text: str, source: str | Path) -> Document:
    """Parse one YAML document; syntax errors, duplicate keys, aliases and tags end up in `errors`."""
    document = Document(values={})
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        place = f"{source}:{text[: error.position].count(chr(10)) + 1}"
        problem = f"{place}: holds the character U+{error.character:04X}, which is no text"
        document.errors.append(InputError("CONF03", problem, fix="remove it"))
        return document
    try:
        _refuse_aliases(text, source, document)
        node = None if document.errors else loader.get_single_node()
        if node is not None:
            document.values = _Reader(str(source), document, loader).value(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark else str(source)
        found = " ".join(part for part in (error.context, error.problem) if part)
        document.errors.append(InputError("CONF03", f"{place}: not YAML ({found})", fix="correct that line"))
    except (yaml.YAMLError, RecursionError) as error:
        problem = f"{source}: not YAML ({type(error).__name__})"
        document.errors.append(InputError("CONF03", problem, fix="write plain text, nested a few levels deep"))
    finally:
        loader.dispose()
    return document


def scalar(text: str) -> Any:
    """One value by the same rules; text that starts a list, mapping or quotation is read as YAML.

    >>> scalar("1e-6"), scalar("no"), scalar("true"), scalar("[1, a]")
    (1e-06, 'no', True, [1, 'a'])
    """
    stripped = text.strip()
    if stripped[:1] in ("[", "{", '"', "'"):
        document = read(stripped, "value")
        if document.errors:
            raise document.errors[0]
        return document.values
    loader = _Loader("")
    return _scalar(loader, yaml.ScalarNode(loader.resolve(yaml.ScalarNode, stripped, (True, False)), stripped))


def write(values: Any) -> str:
    """YAML text that `read` turns back into the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)


def _refuse_aliases(text: str, source: str | Path, document: Document) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        place = f"{source}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            problem = f"{place}: alias '*{event.anchor}' is not supported"
            document.errors.append(InputError("CONF03", problem, fix="write the value out"))
        if depth > MAX_DEPTH:
            problem = f"{place}: nested deeper than {MAX_DEPTH} levels"
            document.errors.append(InputError("CONF03", problem, fix="flatten that value"))
            return


def _scalar(loader: _Loader, node: yaml.ScalarNode) -> Any:
    if node.tag == "tag:yaml.org,2002:int":
        return int(node.value)
    return loader.construct_object(node, deep=True)


class _Reader:
    """Turns nodes into plain values and notes the line of each."""

    def __init__(self, source: str, document: Document, loader: _Loader):
        self.source = source
        self.document = document
        self.loader = loader

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        """The plain value of a node."""
        self.document.places.setdefault(path, self._place(node))
        if node.tag not in _PLAIN_TAGS:
            self._complain("CONF03", node, f"tag {node.tag!r} is not supported", "write a plain value")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        try:
            return _scalar(self.loader, node)
        except (ValueError, yaml.YAMLError):
            self._complain("CONF03", node, f"{node.value!r:.40} is no {node.tag[18:]}", "correct it")
            return None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._complain("CONF03", key_node, "a key must be a word", "write `name: value`")
                continue
            key = key_node.value
            if key in lines:
                dotted = ".".join(map(str, (*path, key)))
                problem = f"duplicate key '{dotted}', first given in line {lines[key]}"
                self._complain("CONF04", key_node, problem, "keep one of the two lines")
                continue
            lines[key] = key_node.start_mark.line + 1
            self.document.places[(*path, key)] = self._place(key_node)
            values[key] = self.value(value_node, (*path, key))
        return values

    def _place(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}"

    def _complain(self, code: str, node: yaml.Node, problem: str, fix: str) -> None:
        self.document.errors.append(InputError(code, f"{self._place(node)}: {problem}", fix=fix))
