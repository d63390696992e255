"""Where two chat templates part, in tokens."""

from itertools import zip_longest
from pathlib import Path

from pipeline.texts.checks import readable_tokenizer
from stages.base import InputError
from stages.render import Renderer

_PROBE = [{"role": "user", "content": "Hello, who are you?"}, {"role": "assistant", "content": "A model."}]


def first_difference(found: Path, expected: Path) -> str:
    """The first token of a short conversation that two folders' tokenizers write differently, as an end of a sentence.

    Empty when they write it alike, or when one of them cannot write it.
    """
    try:
        mine, theirs = _tokens(found), _tokens(expected)
    except InputError:
        return ""
    for position, (here, there) in enumerate(zip_longest(mine, theirs), start=1):
        if here != there:
            return f"; first difference at token {position}: {here!r}, expected {there!r}"
    return ""


def _tokens(folder: Path) -> list[str]:
    renderer = Renderer(readable_tokenizer(str(folder), trust_remote_code=False))
    return renderer.tokenizer.convert_ids_to_tokens(renderer.demonstration({"messages": _PROBE}).ids)
