"""Corpus figures of a run's completions against literals."""

import json
from pathlib import Path

import pytest

from scripts.corpus_bleu import Scored, Texts

REFERENCES = ["the cat sat on a mat", "a dog was here today"]


def test_a_perfect_policy_has_bleu_100_and_all_matches():
    perfect = Scored.of(REFERENCES, REFERENCES)
    assert (perfect.bleu, perfect.rouge, perfect.matches) == pytest.approx((100, 1, 1))
    assert perfect.bleu_interval == pytest.approx(0)


def test_the_words_in_another_order_have_rouge_of_the_longest_common_subsequence():
    other = Scored.of(["mat a on sat cat the", "a dog was here today"], REFERENCES)
    assert other.rouge == pytest.approx((1 / 6 + 1) / 2)
    assert other.matches == 0.5
    assert 0 < other.bleu < 100


def test_completions_are_compared_with_the_sentence_of_their_prompt(tmp_path: Path):
    run = tmp_path / "runs" / "toy"
    (run / "evaluation").mkdir(parents=True)
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"p{i}", "sentence": text} for i, text in enumerate(REFERENCES)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "run": {"name": "toy", "root": str(tmp_path / "runs")},
        "model": {"path": "unused"},
        "data": {"prompts": {"train": str(prompts), "eval": str(prompts)}},
    }
    (run / "config.yaml").write_text(json.dumps(config))
    samples = [{"model": "sft", "prompt": "p1", "completion": f" {REFERENCES[1]}"}]
    samples += [{"model": "sft", "prompt": "p0", "completion": " no"}]
    samples += [{"model": "ppo", "prompt": f"p{i}", "completion": f" {text}"} for i, text in enumerate(REFERENCES)]
    (run / "evaluation" / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    found = Texts.of(run, "sentence").scored()
    assert found["sft"].matches == 0.5
    assert found["ppo"].matches == 1


def test_only_a_difference_that_chance_hardly_makes_has_a_small_p_value():
    wanted = [
        f"the {thing} sat on a {place}" for thing in ("cat", "dog", "man") for place in ("mat", "bed", "log", "box")
    ]
    wrong = ["mat a on sat cat the"] * len(wanted)
    mixed = [right if i % 2 else other for i, (right, other) in enumerate(zip(wanted, wrong, strict=True))]
    swapped = [other if i % 2 else right for i, (right, other) in enumerate(zip(wanted, wrong, strict=True))]
    texts = Texts(wanted, {"good": wanted, "bad": wrong, "mixed": mixed, "swapped": swapped})
    assert texts.p_value("bad", "good") < 0.01
    assert texts.p_value("mixed", "swapped") > 0.05
