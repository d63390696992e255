"""A reward term in the config: one source, and only the keys of that source."""

import json
from pathlib import Path

import pytest

from reward.config import RewardTerm
from reward.metric_config import ARGUMENTS, COMPARING, METRICS


@pytest.mark.parametrize("term", [{}, {"model": "reward_model", "function": "a:b"}, {"metric": "regex", "model": "m"}])
def test_a_term_has_exactly_one_source(term: dict):
    with pytest.raises(ValueError, match="a reward term needs exactly one of `model`, `metric`, `function`"):
        RewardTerm(**term)


@pytest.mark.parametrize(
    ("term", "told"),
    [
        (
            {"function": "a:b", "standardise": True},
            "'standardise' belongs to a term with model, and this one has function",
        ),
        ({"model": "m", "reference": "answer"}, "'reference' belongs to a term with metric, and this one has model"),
        ({"model": "m", "arguments": {"n": 1}}, "'arguments' belongs to a term with metric or function, and this one"),
        (
            {"metric": "repetition", "limit": 2.0},
            "'limit' belongs to a term with function or remote, and this one has metric",
        ),
    ],
)
def test_a_key_of_another_source_is_refused_with_its_source(term: dict, told: str):
    with pytest.raises(ValueError, match=told):
        RewardTerm(**term)


def test_a_term_is_written_with_its_own_keys_and_read_back_equal():
    term = RewardTerm(metric="bleu", reference="answer", normalise={"std": 2.0}, clip=3.0)
    written = json.loads(term.model_dump_json())
    assert list(written) == ["metric", "reference", "arguments", "name", "weight", "clip", "normalise"]
    assert RewardTerm(**written) == term
    assert "standardise" in RewardTerm(model="reward_model").model_dump()


def test_terms_are_named_after_their_source_unless_named():
    assert RewardTerm(function="path/to/file.py:positive").label == "positive"
    assert RewardTerm(model="reward_model").label == "model"
    assert RewardTerm(metric="rougeL", reference="answer").label == "rougeL"
    assert RewardTerm(metric="regex", arguments={"pattern": "x"}, name="asks").label == "asks"
    with pytest.raises(ValueError, match="name"):
        RewardTerm(model="reward_model", name="a/b")


@pytest.mark.parametrize(
    ("term", "told"),
    [
        ({"metric": "bleu"}, "metric bleu needs 'reference', the column of the prompt data that it compares with"),
        ({"metric": "length", "reference": "a"}, "metric length compares with no reference"),
        ({"metric": "length"}, "arguments of metric length: 'target' is missing"),
        ({"metric": "length", "arguments": {"target": 0}}, "'target': Input should be greater than 0"),
        ({"metric": "repetition", "arguments": {"m": 2}}, "arguments of metric repetition: 'm' is unknown"),
        ({"metric": "regex", "arguments": {"pattern": "("}}, "'pattern': '\\('? is no regular expression: missing \\)"),
        (
            {"metric": "rouge1", "reference": "a", "arguments": {"stemmer": True, "tokenizer": "words"}},
            "arguments of metric rouge1: stemmer needs tokenizer: rouge",
        ),
    ],
)
def test_a_mistaken_metric_is_refused(term: dict, told: str):
    with pytest.raises(ValueError, match=told):
        RewardTerm(**term)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_documented_with_its_arguments(metric: str):
    text = (Path(__file__).parents[2] / "docs/rewards.md").read_text("utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| `") and f"`{metric}`" in line.split(" | ")[0])
    assert [name for name in ARGUMENTS[metric].model_fields if f"`{name}" not in row] == []
    assert (metric in COMPARING) == ("| `reference` |" in row)
