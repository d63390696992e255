"""Metrics of a text against values that are known or computed by hand."""

import math
from typing import Any

import pytest

from reward import metrics
from reward.metric_config import METRICS, checked_arguments


def score(metric: str, texts: list[str], references: list[Any] | None = None, **arguments: Any) -> list[float | None]:
    named = checked_arguments(metric, references and "answer", arguments)
    if references:
        named["references"] = references
    return getattr(metrics, metric)(completions=texts, prompts=["p"] * len(texts), label=[0] * len(texts), **named)


COMPARING = [metric for metric in METRICS if metric not in ("regex", "json_valid", "length", "repetition")]


@pytest.mark.parametrize("metric", COMPARING)
def test_a_completion_that_is_its_reference_scores_one_and_an_empty_one_zero(metric: str):
    text = "the cat sat on the mat"
    assert score(metric, [text, "", text, text], [text, text, ["a dog", text], None]) == pytest.approx([1, 0, 1, None])


@pytest.mark.parametrize("metric", COMPARING)
def test_an_empty_reference_is_matched_by_nothing_but_an_empty_text(metric: str):
    assert score(metric, ["a cat", ""], ["", ""]) == [0.0, 1.0 if metric == "exact_match" else 0.0]


def test_bleu_is_the_geometric_mean_of_precisions_times_the_brevity_penalty():
    """Effective order: three words have no 4-grams, so the mean is over 1- to 3-grams."""
    (short,) = score("bleu", ["the cat sat"], ["the cat sat on the mat"])
    assert short == pytest.approx(math.exp(1 - 6 / 3))
    (half,) = score("bleu", ["a b c d"], ["a b c e"])  # precisions 3/4, 2/3, 1/2, and 1/2 for the smoothed 0
    assert half == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** (1 / 4))


def test_bleu_of_several_references_counts_matches_in_any_of_them():
    both = score("bleu", ["a b"], [["a x", "x b"]])
    (one,) = score("bleu", ["a b"], ["a x"])
    assert both[0] > one


def test_bleu_may_ignore_case_and_split_characters():
    assert score("bleu", ["A B"], ["a b"]) == [0.0]
    assert score("bleu", ["A B"], ["a b"], lowercase=True) == pytest.approx([1.0])
    assert score("bleu", ["abc"], ["abd"]) == [0.0]
    assert score("bleu", ["abc"], ["abd"], tokenize="char")[0] > 0.5


def test_chrf_is_the_f2_of_character_grams():
    """ab against abc: 1-grams 2/2 and 2/3, 2-grams 1/1 and 1/2, and the reference's 3-gram has none to be found in."""
    (found,) = score("chrf", ["ab"], ["abc"])
    precision, recall = (1 + 1) / 2, (2 / 3 + 1 / 2) / 2
    assert found == pytest.approx(5 * precision * recall / (4 * precision + recall))


def test_rouge_is_the_f_measure_of_words_pairs_and_longest_common_subsequence():
    text, reference = "The cat, sat down!", "the cat stood; sat"
    assert score("rouge1", [text], [reference]) == pytest.approx([3 / 4])
    assert score("rouge2", [text], [reference]) == pytest.approx([1 / 3])
    assert score("rougeL", [text], [reference]) == pytest.approx([3 / 4])


def test_rouge_takes_the_best_reference_stems_and_reads_other_scripts_when_asked():
    assert score("rouge1", ["a b"], [["x y", "a z"]]) == [0.5]
    assert score("rouge1", ["running"], ["runs"]) == [0.0]
    assert score("rouge1", ["running"], ["runs"], stemmer=True) == [1.0]
    assert score("rouge1", ["\u043a\u043e\u0442"], ["\u041a\u043e\u0442"]) == [0.0]
    assert score("rouge1", ["\u043a\u043e\u0442"], ["\u041a\u043e\u0442"], tokenizer="words") == [1.0]


def test_an_exact_match_is_normalised_only_when_asked():
    texts, answers = [" Paris\n", "The Paris.", "paris"], ["Paris"] * 3
    assert score("exact_match", texts, answers) == [1.0, 0.0, 0.0]
    assert score("exact_match", texts, answers, normalise=True) == [1.0, 1.0, 1.0]
    assert score("exact_match", ["b"], [["a", "b"]]) == [1.0]


def test_a_pattern_is_searched_anywhere():
    assert score("regex", ["so: 42.", "none", ""], pattern=r"\d+\.$") == [1.0, 0.0, 0.0]
    assert score("regex", ["YES"], pattern="(?i)yes") == [1.0]


def test_json_is_the_whole_completion():
    texts = [' {"a": 1}\n', "[1, 2]", "3", '{"a": 1} so', "{'a': 1}", "NaN", "", "[" * 100_000, "1" * 10_000]
    assert score("json_valid", texts) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert score("json_valid", ['{"a": 1, "b": 2}', '{"a": 1}', "[1]"], required=["a", "b"]) == [1.0, 0.0, 0.0]


def test_length_is_one_in_the_band_and_falls_to_zero_outside():
    texts = ["w " * n for n in (0, 2, 3, 4, 5, 7, 20)]
    expected = [0.25, 0.75, 1.0, 1.0, 1.0, 0.5, 0.0]
    assert score("length", texts, target=4, tolerance=1) == expected
    assert score("length", ["w " * 6], target=4, tolerance=1, falloff=2) == [0.5]
    assert score("length", ["abcd"], target=4, unit="characters") == [1.0]
    named = checked_arguments("length", None, {"target": 2, "unit": "tokens"})
    assert metrics.length(["abc", "d"], completion_ids=[[7, 8, 0], [7, 0]], **named) == [0.5, 1.0]


def test_repetition_is_the_fraction_of_ngrams_seen_before():
    assert score("repetition", ["a b a b a b", "a b c", "", "a b"], n=2) == pytest.approx([3 / 5, 0.0, 0.0, 0.0])
    assert score("repetition", ["x x x x x x"]) == pytest.approx([2 / 3])  # three 4-grams, one of its own
