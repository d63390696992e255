"""Finding reward functions, checking what they return, and adding terms up."""

import json
import sys
import textwrap
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from reward.base import RewardError, resolve
from reward.contract import checked, scores_of
from reward.learned import ModelScores
from reward.mixture import FunctionScores, RewardMixture, Scale, Term, Texts

TEXTS = Texts(["p1", "p2"], ["ab", "abcd"], {"label": [1, 0]})
SIGNATURE = "needs (prompts, completions, **columns); fix: add the missing parameters"


def length(prompts, completions, **columns):
    return [float(len(c)) for c in completions]


def labels(prompts, completions, label, scale=1.0, **columns):
    return [scale * value for value in label]


def unread(model):
    raise AssertionError("no reward model here")


def function_file(folder: Path, source: str) -> Path:
    path = folder / "my_reward.py"
    path.write_text(textwrap.dedent(source))
    return path


def message(call, *arguments) -> str:
    with pytest.raises(RewardError) as error:
        call(*arguments)
    assert str(error.value).startswith(f"[{error.value.code}]")
    return str(error.value)


def test_a_function_is_found_by_file(tmp_path: Path):
    path = function_file(
        tmp_path, "def short(prompts, completions, **columns):\n    return [-len(c) for c in completions]\n"
    )
    assert resolve(f"{path}:short")(prompts=["p"], completions=["abc"]) == [-3]


def test_a_function_is_found_by_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "rewards_of_a_test").mkdir()
    (tmp_path / "rewards_of_a_test" / "lengths.py").write_text(
        "def long(prompts, completions, **columns):\n    return [1.0]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("rewards_of_a_test.lengths:long")(prompts=["p"], completions=["abc"]) == [1.0]


def test_a_file_may_define_dataclasses(tmp_path: Path):
    source = """
        from __future__ import annotations
        from dataclasses import dataclass

        @dataclass
        class Word:
            text: str
            weight: float = 1.0

        def words(prompts, completions, **columns):
            return [Word(c).weight for c in completions]
    """
    assert resolve(f"{function_file(tmp_path, source)}:words")(prompts=["p"], completions=["abc"]) == [1.0]


def test_what_cannot_be_imported_is_named(tmp_path: Path):
    fix = "fix: module:function, or path/to/file.py:function"
    gone, path = tmp_path / "gone.py", function_file(tmp_path, "value = 3\n")
    assert (
        message(resolve, f"{gone}:f")
        == f"[REW04] reward function '{gone}:f' cannot be imported (no file {gone}); {fix}"
    )
    assert (
        message(resolve, "no_such_module:f")
        == f"[REW04] reward function 'no_such_module:f' cannot be imported (No module named 'no_such_module'); {fix}"
    )
    assert (
        message(resolve, f"{path}:f")
        == f"[REW04] reward function '{path}:f' cannot be imported (module 'my_reward' has no attribute 'f'); {fix}"
    )
    assert message(resolve, "function").startswith("[REW04] reward function 'function' cannot be imported (")


@pytest.mark.parametrize("source", ["value = 3\n", "def value(:\n"], ids=["no function", "syntax error"])
def test_what_is_no_function_is_refused_with_the_code(source: str, tmp_path: Path):
    assert message(resolve, f"{function_file(tmp_path, source)}:value").startswith("[REW04] ")


def test_a_function_that_takes_no_columns_is_refused(tmp_path: Path):
    path = function_file(tmp_path, "def f(prompts, completions):\n    return [0.0]\n")
    assert message(resolve, f"{path}:f") == f"[REW04] {path}:f takes (prompts, completions); {SIGNATURE}"


def test_numbers_of_every_kind_are_scores():
    scores = [1, 2.5, np.float32(0.5), torch.tensor(-1.0), Fraction(1, 4)]
    assert checked("f", scores, ["p"] * 5, ["c"] * 5) == [1.0, 2.5, 0.5, -1.0, 0.25]
    assert checked("f", np.array([1.0, 2.0]), ["p"] * 2, ["c"] * 2) == [1.0, 2.0]
    assert checked("f", torch.tensor([1.0, 0.0], dtype=torch.bfloat16), ["p"] * 2, ["c"] * 2) == [1.0, 0.0]
    assert checked("f", torch.ones(2, requires_grad=True), ["p"] * 2, ["c"] * 2) == [1.0, 1.0]


def test_a_wrong_count_is_told():
    assert message(checked, "f", [1.0], ["p", "q"], ["c", "d"]) == (
        "[REW01] f returned 1 values for 2 completions; fix: return a list with one float per completion"
    )


@pytest.mark.parametrize(
    ("score", "wrong"),
    [
        (float("nan"), "expected a finite number"),
        (float("inf"), "expected a finite number"),
        ("good", "expected a number, found str"),
        (True, "expected a number, found bool"),
        ([1.0], "expected a number, found list"),
        (np.array([1.0]), "expected a number, found ndarray"),
        (1j, "expected a number, found complex"),
        (-1.5e6, "its magnitude is above the limit 1e+06"),
    ],
)
def test_a_score_that_is_no_finite_number_names_its_sample(score, wrong):
    prompts, completions = ["first", "second prompt " + "x" * 50], ["c", "d" * 60]
    shown = f"sample 1 (prompt 'second prompt {'x' * 26}', completion '{'d' * 40}')"
    assert message(checked, "f", [1.0, score], prompts, completions) == (
        f"[REW02] f gave {score!r} for {shown}; {wrong}; fix: return a finite float for every completion"
    )


def test_none_says_that_the_function_does_not_apply_to_a_sample():
    assert checked("f", [1, None], ["p", "q"], ["c", "d"]) == [1.0, None]
    term = Term("f", 2.0, FunctionScores("f", lambda prompts, completions, **columns: [None, 3], {}))
    scores, parts = RewardMixture([term])(TEXTS, unread)
    assert scores.tolist() == [0.0, 6.0]
    assert parts["f"].isnan().tolist() == [True, False]


def test_a_score_is_scaled_then_clipped_then_weighted():
    source = FunctionScores("length", length, {})
    term = Term("length", 3.0, source, Scale(mean=1.0, std=2.0, clip=1.0))
    scores, parts = RewardMixture([term])(TEXTS, unread)
    assert scores.tolist() == [3.0 * 0.5, 3.0 * 1.0]  # (2 - 1) / 2, and (4 - 1) / 2 clipped
    assert parts["length"].tolist() == [2.0, 4.0]


def test_a_model_that_gives_no_number_is_no_term_that_does_not_apply():
    scores, _ = RewardMixture([Term("model", 1.0, ModelScores(None))])(TEXTS, lambda model: torch.tensor([1.0, np.nan]))
    assert scores.isnan().tolist() == [False, True]


def test_truth_values_of_arrays_are_no_scores():
    for returned in (np.array([True]), torch.tensor([True]), [np.True_], [torch.tensor(True)]):
        assert message(checked, "f", returned, ["p"], ["c"]).startswith("[REW02] f gave True for sample 0 (")


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (None, "None (NoneType), expected a list"),
        (1.0, "1.0 (float), expected a list"),
        ({"c": 1.0}, "{'c': 1.0} (dict), expected a list"),
        ({1.0}, "{1.0} (set), expected a list"),
        ("1", "'1' (str), expected a list"),
        (torch.ones(1, 1), "a Tensor of shape (1, 1), expected one axis"),
        (np.float64(1.0), "a float64 of shape (), expected one axis"),
    ],
)
def test_a_function_that_returns_no_list_is_told_so(returned, told):
    assert message(checked, "f", returned, ["p"], ["c"]) == (
        f"[REW01] f returned {told}; fix: return a list with one float per completion"
    )


def test_a_generator_is_refused_before_it_runs():
    """What it raises would come from nowhere."""
    assert message(checked, "f", (1 / 0 for _ in "c"), ["p"], ["c"]).startswith("[REW01] f returned <generator")


def test_a_function_that_raises_is_told_with_its_own_line_and_the_sample():
    def ratio(prompts, completions, **columns):
        return [json.loads(c)[0] / 1 for c in completions]

    line = ratio.__code__.co_firstlineno + 1
    told = message(scores_of, "ratio", ratio, ["p", "q"], ["[1]", "[]"], {})
    assert told == (
        f"[REW03] ratio raised IndexError: list index out of range at {__file__}:{line} "
        "on sample 1 (prompt 'q', completion '[]'); fix: mend that line"
    )
    told = message(scores_of, "ratio", ratio, ["p", "q"], ["[1]", "["], {})
    assert f" at {__file__}:{line} on sample 1 " in told  # though json raised it


def test_a_function_that_fails_on_the_batch_alone_is_told_so():
    def picky(prompts, completions, **columns):
        return [1.0] if len(prompts) == 1 else sys.exit(3)

    told = message(scores_of, "picky", picky, ["p", "q"], ["c", "d"], {})
    assert told.startswith("[REW03] picky raised SystemExit: 3 at ")
    assert told.endswith(" on the whole batch, though on no sample alone; fix: mend that line")


def test_a_column_that_the_data_lacks_is_told_before_the_call():
    assert message(scores_of, "labels", labels, ["p"], ["c"], {"answer": ["a"]}) == (
        "[REW04] labels needs 'label', which is no column of the prompt data and no argument; found answer; "
        "fix: add 'label' to the prompt rows, or give it a default"
    )


def test_the_score_is_the_weighted_sum_and_the_parts_are_unweighted():
    mixture = RewardMixture(
        [
            Term("length", 0.5, FunctionScores("length", length, {})),
            Term("labels", -2.0, FunctionScores("labels", labels, {"scale": 3.0})),
        ]
    )
    scores, parts = mixture(TEXTS, unread)
    assert scores.tolist() == [0.5 * 2 - 2 * 3, 0.5 * 4]
    assert {name: part.tolist() for name, part in parts.items()} == {"length": [2.0, 4.0], "labels": [3.0, 0.0]}
    assert scores.dtype == torch.float32


def test_columns_and_arguments_reach_the_function():
    seen = {}

    def spy(prompts, completions, **columns):
        seen.update(columns, prompts=prompts, completions=completions)
        return [0.0, 0.0]

    RewardMixture([Term("spy", 1.0, FunctionScores("spy", spy, {"threshold": 2}))])(TEXTS, unread)
    state = seen.pop("trainer_state")
    assert (state.global_step, state.max_steps) == (0, 1)
    assert seen == {"prompts": ["p1", "p2"], "completions": ["ab", "abcd"], "label": [1, 0], "threshold": 2}


def test_a_model_term_is_read_from_the_rollout():
    model = object()
    terms = [Term("model", 2.0, ModelScores(model)), Term("length", 1.0, FunctionScores("length", length, {}))]
    scores, parts = RewardMixture(terms)(TEXTS, lambda asked: torch.tensor([1.0, -1.0]) if asked is model else None)
    assert scores.tolist() == [4.0, 2.0]
    assert parts["model"].tolist() == [1.0, -1.0]


def test_two_terms_of_one_function_count_both():
    """Two reward models are both called `model`; one function may be used with two sets of arguments."""
    terms = [
        Term("labels", 1.0, FunctionScores("labels", labels, {"scale": 1.0})),
        Term("labels", 1.0, FunctionScores("labels", labels, {"scale": 10.0})),
    ]
    scores, parts = RewardMixture(terms)(TEXTS, unread)
    assert scores.tolist() == [11.0, 0.0]
    assert len(parts) == 2


def test_what_a_function_returns_is_checked_on_every_call():
    returned = [[1.0, 2.0], [1.0]]
    term = FunctionScores("flaky", lambda prompts, completions, **columns: returned.pop(0), {})
    assert term(TEXTS, unread).tolist() == [1.0, 2.0]
    assert (
        message(term, TEXTS, unread)
        == "[REW01] flaky returned 1 values for 2 completions; fix: return a list with one float per completion"
    )
