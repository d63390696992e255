"""`rlhf data`: what it shows is what the stages train on, and it can be read anywhere."""

from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import cli
from pipeline.config_loading import load_config
from pipeline.texts.terminal import show
from pipeline.texts.view import Example, data_view
from stages.models.config import ModelConfig
from stages.sft import stage as sft_stage
from tests.pipeline.texts.conftest import DEMONSTRATIONS, PREFERENCES, save_base, write
from tests.toy_models import context, save_toy

pytestmark = pytest.mark.usefixtures("base")
QUESTION, ANSWER = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "so."}


def examples(stage: str, *overrides: str, count: int = 9) -> list[Example]:
    (view,) = data_view(load_config("config.yaml", overrides), [stage], count)
    return [example for file in view.files for example in file.examples]


def rlhf(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    printed = capsys.readouterr()
    return ended.value.code or 0, printed.out, printed.err


def trained_on(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> list[list[tuple[int, bool]]]:
    """(id, whether it carries loss) of every token of every row in the batches that SFT's trainer gets."""
    seen: list[list[tuple[int, bool]]] = []

    class Watched(sft_stage._Trainer):
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
            fields = [inputs[name].tolist() for name in ("input_ids", "labels", "attention_mask")]
            for row in zip(*fields, strict=True):
                tokens = [(i, label) for i, label, real in zip(*row, strict=True) if real]
                seen.append([(i, n > 0 and label != -100) for n, (i, label) in enumerate(tokens)])
            return super().training_step(model, inputs, *rest)

    monkeypatch.setattr(sft_stage, "_Trainer", Watched)
    config = load_config("config.yaml", ["sft.samples=0", *overrides])
    sft_stage.run_sft(config.sft, ModelConfig(path="./base"), Path("demonstrations.jsonl"), None, context(Path("sft")))
    return sorted(seen)


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [((), {}), (("sft.completion_only_loss=false",), {}), (("sft.max_length=12",), {}), ((), {"pad_token": "<eos>"})],
    ids=["completions", "whole rows", "cut rows", "pad is eos"],
)
def test_the_mask_shown_is_the_mask_trained_on(overrides, settings, monkeypatch: pytest.MonkeyPatch):
    from tests.toy_models import toy_tokenizer

    save_toy(Path("base"), tokenizer=toy_tokenizer(**settings))
    write("demonstrations", [*DEMONSTRATIONS[:3], {"prompt": "a film.", "completion": " it is so very, very good"}])
    shown = [
        [(token.id, token.kind == "target") for token in example.passages[0].tokens if token.kind != "cut"]
        for example in examples("sft", *overrides)
    ]
    assert sorted(shown) == trained_on(monkeypatch, *overrides)
    assert sum(loss for row in shown for _, loss in row) > 10


def test_what_ppo_sends_begins_what_sft_trains_on():
    for prompt, demonstration in (
        ("the film", {"prompt": "the film", "completion": " won"}),
        ("<bos>the film", {"prompt": "<bos>the film", "completion": " won"}),
        ([QUESTION], {"messages": [QUESTION, ANSWER]}),
    ):
        write("demonstrations", [demonstration] * 4)
        write("prompts", [{"prompt": prompt}] * 4)
        sent = [t.id for t in examples("ppo", "ppo.max_prompt_tokens=16")[0].passages[0].tokens]
        trained = [t.id for t in examples("sft")[0].passages[0].tokens]
        assert trained[: len(sent)] == sent


def test_without_colours_a_line_of_marks_says_it(capsys):
    code, out, err = rlhf(capsys, "data", "config.yaml", "--rows", "1", "--stage", "sft", "sft.max_length=13")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        ". given, no loss   ^ trained on   x cut off, not seen   «special token»   "
        "· space   ↵ line end   ⋯ part of the next character",
        "",
        "sft  ./base: 37 tokens, BOS '<bos>', EOS '<eos>', a chat template",
        "  demonstrations.train  demonstrations.jsonl",
        "  rows 4; tokens median 14, 95 % within 19, longest 19; sft.max_length 13; cut 3; without target 0; "
        "tokens with loss 31%",
        "",
        "demonstrations.jsonl:1  19 tokens, 4 with loss, cut: 6 tokens beyond sft.max_length 13 are not seen",
        "  «<bos>»│t│h│e│·│f│i│l│m│·│i│s│·│g│r│e│a│t│«<eos>»",
        "  ....... . . . . . . . . ^ ^ ^ ^ x x x x x xxxxxxx",
    ]


def test_ids_stand_below_their_tokens(capsys):
    _, out, _ = rlhf(capsys, "data", "config.yaml", "--rows", "1", "--stage", "ppo", "--ids")
    assert out.splitlines()[-4:] == [
        "  «<bos>»│t │h │e│· │f│i │l │m ",
        "  1       23 11 8 30 9 12 15 16",
        "  ....... .. .. . .. . .. .. ..",
        "  length: 0",
    ]


def test_the_score_of_each_side_is_read_at_its_last_token():
    (example, *_) = examples("reward_model")
    assert example.place == "preferences.jsonl:1"
    assert [(passage.title, [t.text for t in passage.tokens if t.kind == "read"]) for passage in example.passages] == [
        ("chosen", ["<eos>"]),
        ("rejected", ["<eos>"]),
    ]
    assert all(passage.tokens[-1].kind == "read" for passage in example.passages)


def test_lines_are_those_of_the_file_where_reading_left_rows_out():
    equal = {"prompt": "the film", "chosen": " won", "rejected": " won"}
    write("preferences", [*PREFERENCES * 3, equal, *PREFERENCES * 3])
    assert examples("reward_model", count=2)[1].place == "preferences.jsonl:25"


def test_rows_that_are_left_out_are_among_those_shown():
    write("preferences", [*PREFERENCES * 4, {"prompt": "a" * 30, "chosen": "b", "rejected": "c"}, *PREFERENCES * 4])
    places = {example.place: example.facts for example in examples("reward_model", count=2)}
    assert places["preferences.jsonl:17"] == ["33 and 33 tokens", "left out: longer than reward_model.max_length 24"]


def test_colours_say_the_same_without_marks():
    views = data_view(load_config("config.yaml", []), ["sft"], 1)
    console = Console(force_terminal=True, color_system="truecolor", width=80, record=True, file=StringIO())
    show(views, console, ids=False)
    text = console.export_text(styles=True)
    assert "\x1b[38;2;20;23;27;48;2;163;217;165mg\x1b" in text  # a letter of " great" on green
    assert "....." not in text and "^" not in text


class Page(HTMLParser):
    """The tags of a page, and what its tokens say."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def tokens(self, kind: str) -> int:
        return sum(f"token {kind}" in (attrs.get("class") or "") and "title" in attrs for _, attrs in self.tags)


def test_the_page_is_one_file_that_escapes_everything(capsys):
    write("prompts", [{"prompt": "the film", "note": "<script>alert(1)</script>", "<b>": "&"}] * 4)
    write("demonstrations", [{"prompt": "the film", "completion": end} for end in (" is.", " won.", " is", " so")])
    assert rlhf(capsys, "data", "config.yaml", "--html", "deep/data.html", "--ids")[:2] == (0, "Data: deep/data.html\n")
    text = Path("deep/data.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "<script" not in text and "&lt;script&gt;" in text
    assert {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "b "} == set()
    assert [attrs for _, attrs in page.tags if {"src", "href"} & attrs.keys()] == []
    shown = examples("sft", count=5)
    assert page.tokens("target") == sum(t.kind == "target" for e in shown for t in e.passages[0].tokens) == 19
    assert page.tokens("read") == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--stage", "ppo", "ppo.enabled=false"),
            "[RUN03] --stage ppo: no such stage in this config; found sft, reward_model; fix: name one of these",
        ),
        (
            ("model.path=some/model",),
            "[PATH01] no tokenizer of model.path 'some/model' on this machine; "
            "fix: correct model.path, or download that model first",
        ),
        (
            ("prepare={script: make.py, arguments: [--out, data], creates: [data/later.jsonl]}",),
            "[PATH01] data/later.jsonl: not made yet; fix: python make.py --out data",
        ),
    ],
)
def test_what_cannot_be_shown_is_told_with_its_fix(arguments, message, capsys):
    code, _, err = rlhf(capsys, "data", "config.yaml", *arguments)
    assert (code, err) == (2, message + "\n")


def test_messages_without_a_template_are_told_by_row(capsys):
    save_base(chat_template=None)
    write("prompts", [{"prompt": [QUESTION]}] * 4)
    code, _, err = rlhf(capsys, "data", "config.yaml", "--stage", "ppo")
    assert (code, err[:33]) == (2, "[TMPL01] prompts.jsonl row 1: the")
