"""Accuracy by group, against literals."""

import numpy as np
import pytest

from stages.reward_model.groups import Group, by_data_margin, by_length, by_score_margin, by_source


def shown(groups: list[Group]) -> list[tuple[str, float, int]]:
    return [(group.name, group.value, group.n) for group in groups]


def test_pairs_are_grouped_by_which_side_is_longer_and_by_how_much():
    differences = np.array([-9, -4, -4, -1, 0, 0, 2, 4, 5, 30])
    margins = np.array([1.0, -1, 1, 1, 0, 1, -1, -1, 1, -1])
    assert shown(by_length(margins, differences)) == [
        ("shorter by over 4", 1.0, 1),
        ("shorter by 1 to 4", 2 / 3, 3),
        ("same length", 0.75, 2),
        ("longer by 1 to 4", 0.0, 2),
        ("longer by over 4", 0.5, 2),
    ]


def test_groups_of_length_without_pairs_are_left_out():
    assert shown(by_length(np.array([1.0, -1.0]), np.array([0, 0]))) == [("same length", 0.5, 2)]
    assert shown(by_length(np.array([1.0, -1.0]), np.array([1, -1]))) == [
        ("shorter by 1", 0.0, 1),
        ("longer by 1", 1.0, 1),
    ]


def test_quarters_of_the_score_margin_are_of_its_size():
    margins = np.array([-0.1, 0.2, -0.3, 0.4, 0.5, -0.6, 0.7, 0.8])
    assert shown(by_score_margin(margins)) == [
        ("0.1 to 0.2", 0.5, 2),
        ("0.3 to 0.4", 0.5, 2),
        ("0.5 to 0.6", 0.5, 2),
        ("0.7 to 0.8", 1.0, 2),
    ]


def test_equal_margins_are_one_group():
    assert shown(by_score_margin(np.full(5, 2.0))) == [("2 to 2", 1.0, 5)]


def test_few_margins_of_the_data_are_groups_of_their_own_and_many_are_quarters():
    margins = np.array([1.0, -1, 1, 1])
    assert shown(by_data_margin(margins, np.array([1.0, 1, 3, 2]))) == [("1", 0.5, 2), ("2", 1.0, 1), ("3", 1.0, 1)]
    many = by_data_margin(np.ones(12), np.arange(12.0))
    assert shown(many) == [("0 to 2", 1.0, 3), ("3 to 5", 1.0, 3), ("6 to 8", 1.0, 3), ("9 to 11", 1.0, 3)]


def test_sources_are_ordered_by_their_size_and_the_small_ones_put_together():
    margins = np.array([1.0, 1, -1, 1])
    assert shown(by_source(margins, ["b", "a", "b", "b"])) == [("b", 2 / 3, 3), ("a", 1.0, 1)]
    sources = [f"{number:02}" for number in range(25)]
    found = by_source(np.ones(25), sources)
    assert [group.name for group in found] == [*sources[:20], "5 others"]
    assert found[-1].n == 5


def test_a_group_has_wilsons_interval():
    (group,) = by_source(np.array([1.0] * 8 + [-1.0] * 2), ["a"] * 10)
    assert (group.low, group.high) == (pytest.approx(0.4902, abs=5e-5), pytest.approx(0.9433, abs=5e-5))
