"""Those mistakes of tests/test_bad_inputs.py that only a tokenizer shows, driven through `rlhf check` likewise."""

import pytest

from tests.pipeline.texts.conftest import save_base
from tests.test_bad_inputs import Case, place, rlhf, tells, write
from tests.toy_models import VOCABULARY

__all__ = ["place"]  # the fixture
ROOM = ("sft.max_length=32", "reward_model.max_length=32", "ppo.max_prompt_tokens=9")
"""For rows of one token per character."""


def chat() -> None:
    """Demonstrations as messages."""
    roles = ("user", "assistant")
    for name, say in (("demonstrations", "so"), ("demonstrations.eval", "why")):
        write(
            f"{name}.jsonl", *[{"messages": [{"role": r, "content": f"{say} {n}"} for r in roles]} for n in range(12)]
        )


MISTAKES = [
    Case(
        4,
        "messages without a template",
        "[TMPL01] demonstrations.jsonl row 1: the data has messages but the tokenizer has no chat_template; "
        "fix: use prompt/completion rows, or a tokenizer with a template",
        lambda: (save_base(chat_template=None), chat()),
    ),
    Case(
        8,
        "padding without a row in the embedding",
        f"[TOK02] base: the tokenizer has {VOCABULARY + 1} tokens, the model {VOCABULARY} rows; '[PAD]' has none "
        f"(id {VOCABULARY}), added after training?; fix: resize the model's embedding and save it, or name an existing "
        "token in tokenizer_config.json",
        lambda: save_base(extra_special_tokens=["[PAD]"], pad_token="[PAD]"),
    ),
    Case(
        10,
        "rows without target tokens",
        "[DATA04] demonstrations.jsonl: 12 of 12 rows have no target token, their prompts have 7 tokens or more "
        "(median 7; rows 1, 2, 3, 4, 5, ...); fix: raise sft.max_length; the longest row has 18 tokens",
        save_base,
        ("sft.max_length=7", "data.demonstrations.eval=null"),
    ),
    Case(
        28,
        "longer than the context",
        "[LEN01] ppo.max_prompt_tokens + max_new_tokens is 69 tokens, more than the model's context 64; "
        "fix: lower ppo.max_prompt_tokens + max_new_tokens",
        overrides=("ppo.max_new_tokens=60",),
    ),
]
TOLD = [
    Case(
        6,
        "BOS twice",
        "[TMPL03] prompts.jsonl: prompts begin with <bos><bos>, since their text or template writes one; one is kept",
        lambda: (save_base(), write("prompts.jsonl", {"prompt": "<bos>film", "answer": "great"})),
    ),
    Case(
        7,
        "padding is the stop token",
        "[TOK01] base: pad_token is eos_token ('<eos>'); masks are taken from lengths, so this is safe here, and what "
        "is saved pads with '<pad>'",
        lambda: save_base(pad_token="<eos>"),
    ),
    Case(
        16,
        "reward model with another tokenizer",
        "[RM02] reward model ./other has a tokenizer or template of its own … the value model starts from the policy",
        lambda: (save_base(), save_base("other", VOCABULARY + 1, extra_special_tokens=["<tool>"])),
        ("reward_model.path=./other",),
    ),
]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: case.id)
def test_a_mistake_in_texts_is_told_with_its_place_and_its_fix(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.make()
    code, out, err = rlhf(capsys, "check", "config.yaml", *ROOM, *case.overrides)
    assert [line for line in err.splitlines() if not tells(line, case.said)] == []
    assert err.count("\n") == 1
    assert code == case.exit
    assert "Traceback" not in out + err


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("case", TOLD, ids=lambda case: case.id)
def test_what_is_no_mistake_but_should_be_known_is_told_once(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.make()
    code, out, err = rlhf(capsys, "check", "config.yaml", *ROOM, *case.overrides)
    notes = [line.removeprefix("note: ") for line in out.splitlines() if line.startswith("note: ")]
    assert [tells(note, case.said) for note in notes].count(True) == 1
    assert (code, err) == (0, "")
