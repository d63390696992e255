"""Each token as a person can read it, whatever kind of tokenizer made it."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pipeline.texts.stages import Marked
from pipeline.texts.tokens import pieces, readable, visible
from tests.toy_models import BOS, EOS, toy_tokenizer


def byte_level() -> PreTrainedTokenizerBase:
    """One token per byte, as byte-level BPE falls back to."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentence_pieces() -> PreTrainedTokenizerBase:
    """Words with the low line that stands for the space before them."""
    words = ["▁the", "▁film", "s", "<unk>"]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_parts_of_a_character_are_shown_at_its_last_part():
    tokenizer = byte_level()
    ids = tokenizer("aé€😀.").input_ids
    assert pieces(tokenizer, ids) == ["a", "⋯", "é", "⋯", "⋯", "€", "⋯", "⋯", "⋯", "😀", "."]


def test_bytes_that_never_make_a_character_do_not_swallow_what_follows():
    tokenizer = byte_level()
    broken = tokenizer("é").input_ids[:1]
    assert "".join(pieces(tokenizer, [*broken, *tokenizer("abc").input_ids])).endswith("bc")


def test_the_space_of_a_sentence_piece_is_shown():
    assert pieces(sentence_pieces(), [0, 1, 2]) == [" the", " film", "s"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b", "a·b"),
        ("\n\r\t", "↵␍⇥"),
        ("\x1b[31m", "⟨001B⟩[31m"),
        ("‮a​b\xa0", "⟨202E⟩a⟨200B⟩b⟨00A0⟩"),
        ("\ud800", "⟨D800⟩"),
        ("café — 日本", "café·—·日本"),
    ],
)
def test_what_cannot_be_seen_is_shown(text: str, shown: str):
    assert visible(text) == shown


def test_special_tokens_are_told_from_the_others():
    passage = readable(Marked("", [BOS, 4, EOS], ["context", "target", "target"]), toy_tokenizer())
    assert [(t.text, t.kind, t.special) for t in passage.tokens] == [
        ("<bos>", "context", True),
        ("a", "target", False),
        ("<eos>", "target", True),
    ]
