"""Rows as the model sees them, in a terminal: coloured, or with a line of marks where there are no colours."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pipeline.texts.tokens import Passage, Token
from pipeline.texts.view import Example, StageView, meanings

_BORDER = "│"
_INDENT = "  "
_MARKS = {"context": ".", "target": "^", "answer": "-", "read": "R", "cut": "x"}
_STYLES = {
    "context": "dim",
    "target": "#14171b on #a3d9a5",
    "answer": "",
    "read": "bold #14171b on #f2c14e",
    "cut": "strike red",
}
_SPECIAL = "bold magenta"


def show(views: Sequence[StageView], console: Console, ids: bool) -> None:
    """Print every stage: its files in numbers, then its rows."""
    marks = console.no_color or console.color_system is None
    _say(console, _legend(views, marks))
    for view in views:
        _say(console, Text(f"\n{view.stage}", style="bold"), Text(f"  {view.tokenizer}", style="dim"))
        for file in view.files:
            _say(console, Text(f"{_INDENT}{file.role}  {file.path}"))
            _say(console, Text(f"{_INDENT}{file.summary}", style="dim"))
        for example in (example for file in view.files for example in file.examples):
            _example(console, example, ids, marks)


def _example(console: Console, example: Example, ids: bool, marks: bool) -> None:
    _say(console, Text(f"\n{example.place}", style="bold"), Text(f"  {', '.join(example.facts)}"))
    for passage in example.passages:
        if passage.title:
            _say(console, Text(f"{_INDENT}{passage.title}", style="italic"))
        for line in _lines(passage, console.width, ids, marks):
            _say(console, line)
    for name, value in example.columns:
        _say(console, Text(f"{_INDENT}{name}: {value}", style="dim"))


def _legend(views: Sequence[StageView], marks: bool) -> Text:
    shown = [
        Text(f"{_MARKS[kind]} {meaning}") if marks else Text(meaning, style=_STYLES[kind])
        for kind, meaning in meanings(views).items()
    ]
    special = Text("«special token»") if marks else Text("special token", style=_SPECIAL)
    return Text("   ").join([*shown, special, Text("· space   ↵ line end   ⋯ part of the next character")])


def _lines(passage: Passage, width: int, ids: bool, marks: bool) -> Iterator[Text]:
    """A passage in lines of whole tokens; below each its ids and marks, where they are wanted."""
    for row in _wrapped([_Cell(token, ids, marks) for token in passage.tokens], width - len(_INDENT) - 1):
        yield _joined([cell.word(marks) for cell in row], [cell.token for cell in row], marks)
        if ids:
            yield Text(_INDENT + " ".join(str(cell.token.id).ljust(cell.width) for cell in row), style="dim")
        if marks:
            yield Text(_INDENT + " ".join(_MARKS[cell.token.kind] * cell.width for cell in row))


class _Cell:
    """A token as a column of text."""

    def __init__(self, token: Token, ids: bool, marks: bool):
        self.token = token
        self._text = f"«{token.text}»" if marks and token.special else token.text
        self.width = max(cell_len(self._text), len(str(token.id)) if ids else 1)

    def word(self, marks: bool) -> Text:
        padded = self._text + " " * (self.width - cell_len(self._text))
        style = _STYLES[self.token.kind]
        if self.token.special:
            style = f"{style} {_SPECIAL}" if self.token.kind == "context" else f"{style} bold"
        return Text(padded, style="" if marks else style)


def _wrapped(cells: Sequence[_Cell], width: int) -> Iterator[list[_Cell]]:
    """Lines that fit, ended where the text ends one."""
    line: list[_Cell] = []
    used = 0
    for cell in cells:
        if line and (used + cell.width > width or line[-1].token.breaks):
            yield line
            line, used = [], 0
        line.append(cell)
        used += cell.width + 1
    if line:
        yield line


def _joined(words: Sequence[Text], tokens: Sequence[Token], marks: bool) -> Text:
    """Words with a border between them, which has the colour of its sides where they agree."""
    line = Text(_INDENT).append_text(words[0])
    for word, (before, after) in zip(words[1:], pairwise(tokens), strict=True):
        inside = before.kind == after.kind and not marks
        line.append(_BORDER, style=(inside and _STYLES[after.kind]) or "dim").append_text(word)
    return line


def _say(console: Console, *texts: Text) -> None:
    console.print(Text().join(texts), soft_wrap=True, highlight=False)
