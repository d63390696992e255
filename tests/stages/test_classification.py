"""Labelled rows become demonstrations by a template; every mistake in template or rows is told with its place."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config_loading import load_config
from pipeline.preflight import check
from stages.base import InputError
from stages.classification import absent_labels, read_classified, read_sft_rows
from stages.sft.config import ClassificationConfig, SFTConfig
from tests.test_layers import ROOT, TORCH, loaded_by, tops
from tests.toy_models import write_rows

MOOD = ClassificationConfig(prompt="Review: {text}\nMood:", labels={"0": "bad", "1": "good"})
SECTION = """\
  classification:
    prompt: "Review: {text} Mood:"
    labels: {0: bad, 1: good}
"""


def message(path: Path, config: ClassificationConfig = MOOD) -> str:
    with pytest.raises(InputError) as error:
        read_classified(path, config)
    return str(error.value)


def refusal(**changes: Any) -> str:
    with pytest.raises(ValidationError) as error:
        ClassificationConfig(**{"prompt": "{text}:", "labels": {"0": "bad", "1": "good"}} | changes)
    (only,) = error.value.errors()
    return only["msg"].removeprefix("Value error, ")


def test_a_row_becomes_a_prompt_and_its_labels_word(file: Path) -> None:
    write_rows(file, [{"text": "A joy.", "label": 1, "id": 7}, {"text": "No {fun}.", "label": "0", "id": 8}])
    assert read_classified(file, MOOD) == [
        {"prompt": "Review: A joy.\nMood:", "completion": " good", "label": "1"},
        {"prompt": "Review: No {fun}.\nMood:", "completion": " bad", "label": "0"},
    ]


def test_templates_take_other_columns_and_doubled_braces(file: Path) -> None:
    config = ClassificationConfig(
        prompt="{{{title}}} {text} ({year of issue})?", completion=" <{{{label}}}>", labels={"a": "yes", "b": "no"}
    )
    write_rows(file, [{"text": "So so.", "title": "Up", "year of issue": 1999, "label": "b"}])
    assert read_classified(file, config) == [
        {"prompt": "{Up} So so. (1999)?", "completion": " <{no}>", "label": "b"},
    ]


@pytest.mark.parametrize(("label", "key"), [(1, "1"), (1.0, "1"), ("1", "1"), (True, "true"), (False, "false")])
def test_a_label_matches_its_spelling_in_the_config(file: Path, label: Any, key: str) -> None:
    config = ClassificationConfig(prompt="{text}", labels={"1": "one", "true": "yes", "false": "no"})
    (row,) = read_classified(write_rows(file, [{"text": "a", "label": label}]), config)
    assert row["label"] == key


def test_all_mistakes_of_a_file_are_told_together(file: Path) -> None:
    config = ClassificationConfig(prompt="{title}: {text}", labels={"0": "bad", "1": "good"})
    write_rows(
        file,
        [
            {"text": None, "label": 0, "title": "Up"},
            {"txt": "a", "label": None, "title": "Up"},
            {"text": " ", "label": 0.5, "title": None},
            {"text": "a", "label": [1], "title": [1]},
            {"text": "a", "label": "", "title": 5},
            {"text": "a", "label": "good", "title": "Up"},
            {"text": "a", "label": "good", "title": "Up"},
            {"text": "a", "title": "Up"},
        ],
    )
    assert message(file, config).splitlines() == [
        "[DATA02] data.jsonl row 3: 'title' is null; fix: correct or remove them",
        "[DATA02] data.jsonl row 4: 'title' is a list, expected a text or a number; fix: correct or remove them",
        "[DATA01] data.jsonl row 2: no field 'text'. Found: txt, label, title. Did you mean 'txt'?; "
        "fix: rename 'txt' to 'text'",
        "[DATA02] data.jsonl row 1: 'text' is null; fix: correct or remove them",
        "[DATA02] data.jsonl row 3: 'text' is empty; fix: correct or remove them",
        "[DATA01] data.jsonl row 8: no field 'label'. Found: text, title; fix: add 'label'",
        "[DATA02] data.jsonl row 2: 'label' is null; fix: correct or remove them",
        "[DATA02] data.jsonl row 3: 'label' is 0.5, expected a text or a whole number; fix: correct or remove them",
        "[DATA02] data.jsonl row 4: 'label' is a list, expected a text or a whole number; fix: correct or remove them",
        "[DATA02] data.jsonl row 5: 'label' is empty; fix: correct or remove them",
        "[DATA07] data.jsonl row 6: label 'good' is not in sft.classification.labels (2 such rows: 6, 7). "
        "Found: 0, good. Did you mean '1'?; fix: correct the rows, or add 'good' to sft.classification.labels "
        "(all unusable rows at once: sed -i.bak '1d;2d;3d;4d;5d' data.jsonl)",
    ]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (
            ["positive", "postive"],
            "[DATA07] data.jsonl row 2: label 'postive' is not in sft.classification.labels. Found: positive, postive. "
            "Did you mean 'positive'?; fix: correct the rows, or add 'postive' to sft.classification.labels",
        ),
        (
            ["negative", 3],
            "[DATA07] data.jsonl row 2: label '3' is not in sft.classification.labels. Found: 3, negative; "
            "fix: correct the rows, or add '3' to sft.classification.labels",
        ),
        (
            list(range(15)),
            "[DATA07] data.jsonl row 1: label '0' is not in sft.classification.labels (15 such rows: 1, 2, 3, 4, 5, "
            "...). Found: 0, 1, 10, 11, 12, 13, 14, 2, 3, 4, 5, 6, ...; "
            "fix: correct the rows, or add '0' to sft.classification.labels",
        ),
    ],
)
def test_a_label_that_the_config_does_not_name_is_told(file: Path, labels: list[Any], told: str) -> None:
    config = ClassificationConfig(prompt="{text}", labels={"positive": "good", "negative": "bad"})
    write_rows(file, [{"text": "a", "label": label} for label in labels])
    assert message(file, config) == told


def test_labels_that_no_row_has_are_known(file: Path) -> None:
    rows = read_classified(write_rows(file, [{"text": "a", "label": 1}]), MOOD)
    assert absent_labels(rows, MOOD) == ["0"]


def test_without_a_template_the_file_holds_demonstrations(file: Path) -> None:
    write_rows(file, [{"text": "a whole text", "label": 1}])
    assert read_sft_rows(file, SFTConfig()) == [{"text": "a whole text", "label": 1}]
    assert read_sft_rows(file, SFTConfig(classification=MOOD)) == [
        {"prompt": "Review: a whole text\nMood:", "completion": " good", "label": "1"}
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompt": "Mood:"}, "'Mood:' has {text} 0 times, expected once"),
        ({"prompt": "{text} {text}"}, "'{text} {text}' has {text} 2 times, expected once"),
        ({"prompt": "{text} {label}"}, "'{text} {label}' has {label}, which would tell the answer"),
        (
            {"prompt": "{text"},
            "'{text' has unpaired braces (expected '}' before end of string); write {{ or }} for a brace",
        ),
        (
            {"prompt": "{text} }"},
            "'{text} }' has unpaired braces (Single '}' encountered in format string); write {{ or }} for a brace",
        ),
        ({"prompt": "{text:>9}"}, "'{text:>9}' has a place that is not just {column}; write {{ or }} for a brace"),
        ({"prompt": "{text!r}"}, "'{text!r}' has a place that is not just {column}; write {{ or }} for a brace"),
        ({"prompt": "{text} {}"}, "'{text} {}' has a place that is not just {column}; write {{ or }} for a brace"),
        ({"completion": " yes"}, "' yes' has no place, expected {label} once and nothing else"),
        ({"completion": "{label}{text}"}, "'{label}{text}' has {label} {text}, expected {label} once and nothing else"),
        (
            {"labels": {"0": "bad", "1": "good", "2": "bad "}},
            "two labels have the word 'bad', so they could not be told apart",
        ),
        ({"labels": {"0": "bad", "1": " "}}, "a label has an empty word"),
        ({"labels": {"0": "bad"}}, "Dictionary should have at least 2 items after validation, not 1"),
    ],
)
def test_an_unusable_section_is_refused(changes: dict[str, Any], told: str) -> None:
    assert refusal(**changes) == told


def test_packing_is_refused() -> None:
    with pytest.raises(ValidationError, match="packing has no meaning with classification"):
        SFTConfig(packing=True, classification=MOOD)


def test_ppo_that_mixes_in_labelled_rows_is_refused(file: Path) -> None:
    Path("config.yaml").write_text("run: {name: a}\nmodel: {path: base}\nsft:\n" + SECTION)
    assert load_config("config.yaml").sft.classification.labels == {"0": "bad", "1": "good"}
    with pytest.raises(InputError, match="ppo.ptx_coef mixes demonstrations into PPO, and with sft.classification"):
        load_config("config.yaml", ["ppo.ptx_coef=0.1"])


def test_the_check_before_a_run_reads_labelled_rows(file: Path) -> None:
    write_rows(file, [{"text": "a", "label": label} for label in (0, 1, 2)])
    Path("base").mkdir()
    Path("base/config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    Path("config.yaml").write_text(
        "run: {name: a}\nmodel: {path: base}\ndata: {demonstrations: {train: data.jsonl}}\n"
        "reward_model: {enabled: false}\nppo: {enabled: false}\nsft:\n  batch_size: 1\n  microbatch_size: 1\n" + SECTION
    )
    (error,) = check(load_config("config.yaml")).errors
    assert str(error).startswith("[DATA07] data.jsonl row 3: label '2' is not in sft.classification.labels. Found: 0, ")


def test_reading_labelled_rows_imports_no_torch() -> None:
    heavy = [tops(path, everywhere=False) & TORCH for path in loaded_by(ROOT / "stages/classification.py")]
    assert len(heavy) > 3
    assert not any(heavy)
