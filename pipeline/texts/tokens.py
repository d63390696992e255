"""Tokens as a person can read them: what each stands for, with white space and invisible characters made visible."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from pipeline.texts.stages import Kind, Marked

_VISIBLE = {" ": "·", "\n": "↵", "\r": "␍", "\t": "⇥"}
_UNFINISHED, _LONGEST_CHARACTER = "�", 4
PART = "⋯"
"""Stands for a token that holds only a part of a character; the last of its parts shows it."""


@dataclass(frozen=True)
class Token:
    """One id in its place."""

    id: int
    text: str
    """What it stands for, every character visible."""
    kind: Kind
    special: bool

    @property
    def breaks(self) -> bool:
        """Whether a line ends with it."""
        return self.text.endswith(_VISIBLE["\n"])


@dataclass(frozen=True)
class Passage:
    """One sequence of a row."""

    title: str
    tokens: Sequence[Token]


def readable(marked: Marked, tokenizer: PreTrainedTokenizerBase) -> Passage:
    """A sequence with the text of each of its tokens."""
    special = set(tokenizer.all_special_ids)
    texts = pieces(tokenizer, marked.ids)
    parts = zip(marked.ids, texts, marked.kinds, strict=True)
    return Passage(marked.title, [Token(i, visible(text), kind, i in special) for i, text, kind in parts])


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token; tokens that share a character are PART but for the last."""
    found: list[str] = []
    waiting: list[int] = []
    for i, name in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        waiting.append(i)
        text = tokenizer.decode(waiting, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if text.endswith(_UNFINISHED) and len(waiting) < _LONGEST_CHARACTER:
            found.append(PART)
            continue
        # Decoding a piece by itself loses the space that SentencePiece writes as a low line.
        opens = name is not None and name.startswith("▁") and not text.startswith(" ")
        found.append(" " + text if opens else text)
        waiting = []
    return found


def visible(text: str) -> str:
    """White space as signs; control and format characters, which could steer a terminal or hide, by their code."""
    return "".join(_VISIBLE.get(c) or (f"⟨{ord(c):04X}⟩" if _hides(c) else c) for c in text)


def _hides(character: str) -> bool:
    return unicodedata.category(character)[0] in "CZ"
