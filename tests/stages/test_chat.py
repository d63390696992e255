"""A chat answers what the chosen adapter alone would, over one copy of the base, and survives what people type."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.base import InputError
from stages.chat import HELP, ChatConfig, ChatSession, run_chat
from stages.models.config import ModelConfig, TuningConfig
from stages.models.load import load_tokenizer, source_of
from stages.models.publish import publish
from stages.models.roles import Roles
from stages.models.trunk import decoder_layers
from tests.toy_models import EOS, PAD, noise, save_toy, toy_tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
TUNINGS = {
    "lora": TuningConfig(method="lora", r=2, targets="all-linear"),
    "houlsby": TuningConfig(method="adapter"),
    "prefix": TuningConfig(method="prefix_tuning", virtual_tokens=3),
    "prompt": TuningConfig(method="prompt_tuning", virtual_tokens=3),
    "p": TuningConfig(method="p_tuning", virtual_tokens=3),
}
QUESTION = "how was the film?"
ASKED = f"u:{QUESTION}\na:"
"""What the toy template makes of it, after BOS."""


def adapter(folder: Path, name: str, base: Path, **tokenizer: object) -> Path:
    """A trained adapter by the method `name`, published as the stages do."""
    torch.manual_seed(0)
    roles = Roles(ModelConfig(path=str(base)))
    lm = roles.policy(source_of(base), TUNINGS[name])
    for parameter in [n for n, p in lm.named_parameters() if p.requires_grad]:
        noise(lm, only=parameter, seed=len(name), scale=0.3)
    final = folder / name / "final"
    publish(lm, toy_tokenizer(**tokenizer), final, roles)
    return final


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_toy(tmp_path / "base")


@torch.no_grad()
def alone(folder: Path, text: str, count: int) -> str:
    """The likeliest continuation by the model of a folder, whole forward passes without any cache."""
    tokenizer = load_tokenizer(source_of(folder))
    lm = Roles(ModelConfig(path=source_of(folder).base)).reference(source_of(folder))
    ids, new = tokenizer(text).input_ids, []
    while len(new) < count and EOS not in new:
        new.append(int(lm(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
    return tokenizer.decode(new, skip_special_tokens=True)


def greedy(folder: Path, count: int = 12, **adapters: Path) -> ChatSession:
    return ChatSession(ChatConfig(folder, adapters, temperature=0, max_new_tokens=count))


def transcript(session: ChatSession, *lines: str, marked: bool = False) -> str:
    written: list[str] = []
    run_chat(session, lines, written.append, marked)
    return "".join(written)


def test_each_adapter_answers_as_it_would_alone(tmp_path: Path, base: Path):
    finals = {name: adapter(tmp_path, name, base) for name in TUNINGS}
    session = greedy(finals["lora"], **{name: final for name, final in finals.items() if name != "lora"})
    assert list(session.voices) == ["base", "default", "houlsby", "prefix", "prompt", "p"]
    assert session.active == "default"
    said = {}
    for name in session.voices:
        session.switch(name)
        session.reset()
        said[name] = session.reply(QUESTION)
        assert said[name] == alone({"base": base, "default": finals["lora"]}.get(name) or finals[name], ASKED, 12), name
    assert len(set(said.values())) == 6


def test_all_voices_hold_the_same_tensors_of_the_base(tmp_path: Path, base: Path):
    finals = {name: adapter(tmp_path, name, base) for name in ("lora", "houlsby", "prefix")}
    session = greedy(base, **finals)
    pointers = [
        {p.data_ptr() for n, p in decoder_layers(voice.lm).named_parameters() if "lora_" not in n and "bottle" not in n}
        for voice in session.voices.values()
    ]
    assert len(pointers) == 4 and len(pointers[0]) == 18
    assert all(found == pointers[0] for found in pointers)


def test_the_conversation_stays_when_the_adapter_changes(tmp_path: Path, base: Path):
    other = adapter(tmp_path, "prefix", base)
    session = greedy(base, other=other)
    first = session.reply(QUESTION)
    session.switch("other")
    second = session.reply("why?")
    template = toy_tokenizer().apply_chat_template(session.messages[:3], tokenize=False, add_generation_prompt=True)
    assert template == f"<bos>{ASKED}{first}<eos>\nu:why?\na:"
    assert second == alone(other, template.removeprefix("<bos>"), 12)
    assert [m["role"] for m in session.messages] == ["user", "assistant", "user", "assistant"]
    assert second != alone(other, "u:why?\na:", 12), "the history must matter"


def test_a_text_is_continued_when_there_is_no_template(tmp_path: Path):
    base = save_toy(tmp_path / "base", tokenizer=toy_tokenizer(chat_template=None))
    session = greedy(base)
    session.reply("something before")
    assert session.reply("the film ") == alone(base, "the film ", 12)


def test_an_adapter_is_asked_in_the_template_that_it_was_trained_with(tmp_path: Path, base: Path):
    plain = adapter(tmp_path, "lora", base, chat_template=None)
    session = greedy(base, plain=plain)
    session.switch("plain")
    assert session.reply("the film ") == alone(plain, "the film ", 12)


@pytest.mark.parametrize("name", ["lora", "prefix", "prompt"])
def test_what_is_streamed_is_the_reply_in_pieces_without_the_prompt(name: str, tmp_path: Path, base: Path):
    pieces: list[str] = []
    session = greedy(adapter(tmp_path, name, base))
    assert session.reply(QUESTION, pieces.append) == "".join(pieces) != ""
    assert len([piece for piece in pieces if piece]) > 1


def test_replies_repeat_with_the_seed_and_only_with_it(base: Path):
    def conversation(seed: int) -> list[str]:
        session = ChatSession(ChatConfig(base, temperature=1.5, max_new_tokens=20, seed=seed))
        return [session.reply(QUESTION), session.reply(QUESTION)]

    assert conversation(1) == conversation(1) != conversation(2)


def test_temperature_leads_from_the_likeliest_text_to_others(base: Path):
    def reply(temperature: float) -> str:
        return ChatSession(ChatConfig(base, temperature=temperature, max_new_tokens=12, seed=3)).reply(QUESTION)

    assert reply(1e-4) == reply(0) == alone(base, ASKED, 12)
    assert reply(3.0) != reply(0)


def test_a_stop_token_ends_a_reply_and_is_not_shown(base: Path):
    session = greedy(base, count=40)
    first_three = [int(i) for i in toy_tokenizer()(alone(base, ASKED, 3), add_special_tokens=False).input_ids]
    voice = session.voices["base"]
    session.voices["base"] = type(voice)(voice.lm, voice.renderer, (first_three[2],))
    assert session.reply(QUESTION) == toy_tokenizer().decode(first_three[:2])


@pytest.mark.parametrize("name", [None, "prompt"])
def test_the_oldest_messages_leave_when_the_context_is_full_and_it_is_said_once(name, tmp_path: Path, base: Path):
    session = greedy(adapter(tmp_path, name, base) if name else base, count=20)
    assert session.voices[session.active].limit == (125 if name else 128)
    written = transcript(session, *["abcdefghij" * 3] * 6)
    assert written.count("no longer fits into") == 1
    assert len(session.messages) in (2, 4)
    assert session.messages[0]["role"] == "user"
    last = len(toy_tokenizer().apply_chat_template(session.messages)["input_ids"])
    assert last <= 128 + 2, "template ends the answer with EOS and a new line"


def test_a_text_longer_than_the_context_is_declined_and_the_chat_goes_on(base: Path):
    session = greedy(base)
    before = session.reply(QUESTION)
    written = transcript(session, "x" * 200)
    assert written == "(this text has 206 tokens, the model takes fewer than 128; shorten it)\n"
    assert session.messages[1]["content"] == before and len(session.messages) == 2


def test_a_reply_limit_beyond_the_context_leaves_room_for_the_conversation(base: Path):
    session = greedy(base, count=1000)
    session.reply("a")
    session.messages[1]["content"] = "short"
    session.reply("b")
    assert len(session.messages) == 4


def test_commands_list_switch_forget_and_end(tmp_path: Path, base: Path):
    session = greedy(base, style=adapter(tmp_path, "houlsby", base))
    said = transcript(session, "/adapter\n", "/adapter style\n", "/adapter\n", "/base\r\n", "/help\n")
    assert said == (
        "adapters: base (active), style\nnow answering: style\nadapters: base, style (active)\nnow answering: base\n"
        + HELP
    )
    assert transcript(session, QUESTION, "", "   \n", "/reset", "/quit", QUESTION) == (
        f"{alone(base, ASKED, 12)}\nthe conversation is forgotten\n"
    )
    assert session.messages == []


def test_unknown_names_and_commands_are_answered_with_the_known_ones(tmp_path: Path, base: Path):
    session = greedy(base, style=adapter(tmp_path, "houlsby", base))
    assert transcript(session, "/adapter stile") == (
        "[CHAT03] no adapter 'stile'; found base, style; fix: name one of these\n"
    )
    assert transcript(session, "/exit now") == f"no command /exit; known are:\n{HELP}"
    assert session.active == "base" and session.messages == []


def test_a_terminal_sees_who_is_asked(tmp_path: Path, base: Path):
    session = greedy(base, style=adapter(tmp_path, "houlsby", base))
    assert transcript(session, "/adapter style", marked=True) == (
        "adapters: base (active), style\n/help lists the commands\n[base] > now answering: style\n[style] > "
    )


def test_an_adapter_of_another_base_is_refused_before_the_chat(tmp_path: Path, base: Path):
    stranger = adapter(tmp_path, "lora", save_toy(tmp_path / "other", seed=1))
    with pytest.raises(InputError, match=r"^\[PEFT01\] the adapter .*lora/final was trained on .*/other' \(weights "):
        greedy(base, stranger=stranger)


def test_the_path_of_a_base_does_not_matter_but_its_weights(tmp_path: Path, base: Path):
    final = adapter(tmp_path, "lora", base)
    expected = alone(final, ASKED, 12)
    shutil.copytree(base, tmp_path / "copy")
    session = greedy(tmp_path / "copy", style=final)
    session.switch("style")
    assert session.reply(QUESTION) == expected


def test_whole_weights_are_no_adapter(base: Path):
    with pytest.raises(InputError, match=r"^\[CHAT02\] adapter whole: .*/base has no adapter_config.json"):
        greedy(base, whole=base)


@pytest.mark.parametrize("tuning", [TuningConfig(), TUNINGS["lora"]], ids=["full", "lora"])
def test_a_reward_model_cannot_talk(tuning: TuningConfig, tmp_path: Path, base: Path):
    roles = Roles(ModelConfig(path=str(base)))
    classifier = roles.scorer_to_train(source_of(base), tuning, PAD)
    noise(classifier, only="lora_" if tuning.method == "lora" else "")
    publish(classifier, toy_tokenizer(), tmp_path / "final", roles)
    with pytest.raises(InputError, match=r"^\[STAGE02\] .*/final is a reward model \(score head"):
        greedy(tmp_path / "final")


def rlhf_chat(*arguments: str, typed: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipeline.cli", "chat", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, input=typed.encode(), capture_output=True, timeout=120
    )


def test_the_command_reads_a_pipe_and_writes_only_the_answers(tmp_path: Path, base: Path):
    style, default = adapter(tmp_path, "prefix", base), adapter(tmp_path, "lora", base)
    typed = f"{QUESTION}\n/reset\n/adapter style\n{QUESTION}"  # the last line has no end
    flags = ("--temperature", "0", "--max-new-tokens", "12")
    done = rlhf_chat(str(default), "--adapter", f"style={style}", *flags, typed=typed)
    assert done.returncode == 0, done.stderr.decode()
    expected = (
        f"{alone(default, ASKED, 12)}\nthe conversation is forgotten\nnow answering: style\n{alone(style, ASKED, 12)}\n"
    )
    assert done.stdout.decode().endswith(expected)
    assert " > " not in done.stdout.decode().removesuffix(expected)


def test_the_command_refuses_a_nameless_adapter_at_once(base: Path):
    done = rlhf_chat(str(base), "--adapter", str(base), typed="")
    assert done.returncode == 2
    assert done.stderr.decode().startswith("[CHAT01] --adapter ")
