"""What `rlhf check` finds in texts with the tokenizer alone, each mistake provoked with a real one."""

from pathlib import Path

import pytest

from pipeline import cli
from pipeline.config_loading import load_config
from pipeline.findings import Findings
from pipeline.preflight import check
from tests.pipeline.texts.conftest import DEMONSTRATIONS, PREFERENCES, save_base, write
from tests.toy_models import BOS, CHAT_TEMPLATE, VOCABULARY

pytestmark = pytest.mark.usefixtures("base")
CHAT = [
    {"messages": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": f"so {n}."}]} for n in "abcd"
]


def errors(*overrides: str) -> list[str]:
    return [str(error) for error in check(load_config("config.yaml", overrides)).errors]


def found(*overrides: str) -> Findings:
    found = check(load_config("config.yaml", overrides))
    assert found.errors == []
    return found


def notes(*overrides: str) -> list[str]:
    return found(*overrides).notes


def summary(stage: str, *overrides: str) -> str:
    (line,) = [line for line in found(*overrides).fine[stage] if "tokens median" in line]
    return line


def test_sound_texts_are_summed_up_and_nothing_else_is_said():
    assert notes() == []
    assert [summary(stage) for stage in ("sft", "reward_model", "ppo")] == [
        "demonstrations.jsonl: rows 4; tokens median 14, 95 % within 19, longest 19; sft.max_length 24; "
        "cut 0; without target 0; tokens with loss 43%",
        "preferences.jsonl: rows 4; tokens median 14, 95 % within 17, longest 17; "
        "reward_model.max_length 24; too long 0; equal 0",
        "prompts.jsonl: rows 4; tokens median 9, 95 % within 9, longest 9; ppo.max_prompt_tokens 9",
    ]


def test_messages_without_a_template_are_told_once_for_all_files():
    save_base(chat_template=None)
    write("demonstrations", CHAT)
    write("prompts", [{"prompt": row["messages"][:1]} for row in CHAT])
    assert errors() == [
        "[TMPL01] demonstrations.jsonl row 1: the data has messages but the tokenizer has no chat_template; "
        "fix: use prompt/completion rows, or a tokenizer with a template"
    ]


def test_a_template_that_refuses_messages_is_told_with_their_row():
    save_base(chat_template="{{ raise_exception('roles must alternate') }}")
    write("demonstrations", CHAT)
    assert errors() == [
        "[TMPL05] demonstrations.jsonl row 1: the chat template refuses the messages (roles must alternate); "
        "fix: order roles and messages as that template wants them"
    ]


def test_bos_that_the_texts_write_too_is_told_and_taken_away():
    write("prompts", [{"prompt": f"<bos>the {word}"} for word in ("film", "plot", "cast", "book")])
    assert notes() == [
        "[TMPL03] prompts.jsonl: prompts begin with <bos><bos>, since their text or template writes one; one is kept",
        "[TMPL03] prompts.jsonl: 4 of 4 rows (1, 2, 3, 4) have <bos> in their text; it is read as that special token",
    ]
    assert summary("ppo").startswith("prompts.jsonl: rows 4; tokens median 9")


def test_bos_that_the_template_writes_twice_is_told():
    save_base(chat_template="{{ bos_token }}" + CHAT_TEMPLATE)
    write("demonstrations", CHAT)
    assert notes()[0].startswith("[TMPL03] demonstrations.jsonl: prompts begin with <bos><bos>")


def test_padding_with_the_stop_token_is_told_to_be_safe():
    save_base(pad_token="<eos>")
    assert notes() == [
        "[TOK01] ./base: pad_token is eos_token ('<eos>'); masks are taken from lengths, so this is safe here, "
        "and what is saved pads with '<pad>'"
    ]


def test_a_padding_token_without_an_embedding_row_is_refused():
    save_base(extra_special_tokens=["[PAD]"], pad_token="[PAD]")
    assert errors() == [
        f"[TOK02] ./base: the tokenizer has {VOCABULARY + 1} tokens, the model {VOCABULARY} rows; '[PAD]' has none "
        f"(id {VOCABULARY}), added after training?; fix: resize the model's embedding and save it, or name an "
        "existing token in tokenizer_config.json"
    ]


def test_more_tokens_than_rows_are_harmless_when_no_text_has_them():
    save_base(extra_special_tokens=["<tool>"])
    assert notes() == []
    write("prompts", [{"prompt": "<tool>"}] * 4)
    assert [message[:7] for message in errors()] == ["[TOK02]"]


def test_a_tokenizer_without_a_stop_token_is_refused_once():
    save_base(eos_token=None)
    assert errors() == [
        "[TOK03] the tokenizer of './base' has no eos_token; fix: set eos_token in tokenizer_config.json"
    ]


def test_a_damaged_tokenizer_is_refused():
    Path("base/tokenizer.json").write_text('{"model": 3}')
    (message,) = errors()
    assert message.startswith("[TOK04] the tokenizer of './base' cannot be loaded (")


def test_rows_without_target_tokens_are_refused_with_their_share_and_median():
    assert errors("sft.max_length=9") == [
        "[DATA04] demonstrations.jsonl: 4 of 4 rows have no target token, their prompts have 9 tokens or more "
        "(median 9; rows 1, 2, 3, 4); fix: raise sft.max_length; the longest row has 19 tokens"
    ]


def test_a_few_rows_without_target_tokens_are_counted():
    write("demonstrations", [*DEMONSTRATIONS * 5, {"prompt": "a" * 30, "completion": " b"}])
    assert summary("sft") == (
        "demonstrations.jsonl: rows 21; tokens median 17, 95 % within 19, longest 34; sft.max_length 24; "
        "cut 0; without target 1; tokens with loss 43%"
    )


def test_cut_rows_are_counted():
    assert "; cut 1; without target 0; tokens with loss 42%" in summary("sft", "sft.max_length=18")


def test_pairs_that_are_all_too_long_are_refused():
    (message,) = errors("reward_model.max_length=12")
    assert message.startswith("[DATA04] preferences.jsonl: no pair is within 12 tokens (the shortest has 14)")


def test_pairs_that_differ_in_nothing_the_tokenizer_sees_are_refused_with_their_lines():
    equal_texts = {"prompt": "the film", "chosen": " won", "rejected": " won "}  # read_preferences leaves it out
    equal_tokens = {"prompt": "the film", "chosen": " A", "rejected": " B"}  # both unknown
    write("preferences", [*PREFERENCES * 5, equal_texts, equal_tokens, equal_tokens])
    assert errors() == [
        "[DATA05] preferences.jsonl: the two sides are the same tokens in 2 of 22 rows (22, 23); "
        "fix: remove those rows; their texts differ in nothing it sees"
    ]


def test_prompts_that_are_too_long_are_refused_with_the_length_they_need():
    assert errors("ppo.max_prompt_tokens=8") == [
        "[LEN02] prompts.jsonl: 4 of 4 prompts are longer than ppo.max_prompt_tokens 8 (rows 1, 2, 3, 4); "
        "fix: set ppo.max_prompt_tokens=9, or shorten them"
    ]


def test_the_longest_prompts_of_a_large_file_are_looked_at():
    short = [{"prompt": "ab" * 2}] * 40_000 + [{"prompt": "abcdefghij"}] + [{"prompt": "ab" * 2}] * 1
    import pipeline.texts.files as files

    original, files.CHARACTERS = files.CHARACTERS, 20_000
    try:
        write("prompts", short)
        assert errors()[0].startswith("[LEN02] prompts.jsonl: 1 of ")
    finally:
        files.CHARACTERS = original


def test_a_reward_model_with_a_tokenizer_of_its_own_is_told():
    save_base("foreign", extra_special_tokens=["<tool>"], rows=VOCABULARY + 1)
    assert notes("reward_model.path=./foreign") == [
        f"[RM02] reward model ./foreign has a tokenizer or template of its own ({VOCABULARY + 1} tokens, policy "
        f"{VOCABULARY}): completions are decoded and rendered again for it; the value model starts from the policy"
    ]
    save_base("same")
    assert notes("reward_model.path=./same") == []


def test_without_a_tokenizer_there_is_a_note():
    for file in Path("base").glob("tokenizer*"):
        file.unlink()
    assert notes() == ["no tokenizer of './base' on this machine yet: texts not checked as tokens"]
    assert notes("model.path=some/model") == [
        "no tokenizer of 'some/model' on this machine yet: texts not checked as tokens"
    ]


def test_mistakes_of_config_data_and_texts_come_together_by_the_command(capsys):
    write("preferences", [{"prompt": "a"}] * 4)
    with pytest.raises(SystemExit) as exit:
        cli.main(["check", "config.yaml", "sft.max_length=9", "ppo.max_prompt_tokens=8", "sft.batch_size=3"])
    told = capsys.readouterr().err
    assert exit.value.code == 2
    assert [told.count(code) for code in ("[BATCH02]", "[DATA01]", "[DATA04]", "[LEN02]")] == [1, 2, 1, 1]


def test_the_ids_that_are_checked_have_one_bos():
    from stages.models.load import tokenizer_alone
    from stages.render import Renderer

    renderer = Renderer(tokenizer_alone("./base"))
    for prompt in ("<bos>the film", "<bos><bos>the film", "the film"):
        assert renderer.prompt(prompt).count(BOS) == 1
    assert renderer.doubled_bos == 2
