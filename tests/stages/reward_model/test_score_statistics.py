"""Distributions and correlation of scores, against literals."""

import numpy as np
import pytest

from stages.reward_model.score_statistics import Scored, common_edges, distribution, length_correlation


def scored(scores: list[float], lengths: list[int]) -> Scored:
    return Scored(np.array(scores), np.array(lengths))


def test_a_distribution_in_numbers():
    kind = scored([0.0, 1.0, 2.0, 3.0], [4, 3, 2, 1])
    found = distribution(kind, np.array([0.0, 1.5, 3.0]))
    assert (found.n, found.mean, found.std) == (4, 1.5, pytest.approx(1.25**0.5))
    assert found.counts == [2, 2]
    assert found.quantiles == pytest.approx({"5 %": 0.15, "25 %": 0.75, "50 %": 1.5, "75 %": 2.25, "95 %": 2.85})
    assert found.points == [(4, 0.0), (3, 1.0), (2, 2.0), (1, 3.0)]


def test_all_kinds_share_their_bins_and_every_text_is_in_one():
    kinds = {"chosen": scored([1.0, 9.0], [1, 1]), "rejected": scored([-3.0], [1])}
    edges = common_edges(kinds)
    assert (len(edges), edges[0], edges[-1]) == (31, -3.0, 9.0)
    assert [sum(distribution(kind, edges).counts) for kind in kinds.values()] == [2, 1]


def test_of_many_texts_some_at_even_distances_are_kept_with_the_first_and_the_last():
    many = scored([float(i) for i in range(1000)], list(range(1000)))
    points = distribution(many, np.array([0.0, 1000.0])).points
    assert (len(points), points[0], points[-1]) == (250, (0, 0.0), (999, 999.0))


def test_correlation_with_length():
    found = length_correlation(scored([1.0, 2.0, 4.0, 8.0, 16.0], [1, 2, 3, 4, 5]))
    assert found.spearman == pytest.approx(1.0)
    assert found.pearson == pytest.approx(0.9332565, abs=1e-6)
    half = 1.959964 / 2**0.5  # Fisher: z +- 1.96 / sqrt(n - 3)
    assert found.low == pytest.approx(np.tanh(np.arctanh(found.pearson) - half))
    assert found.high == pytest.approx(np.tanh(np.arctanh(found.pearson) + half))


def test_where_nothing_varies_there_is_no_correlation():
    assert length_correlation(scored([1.0, 2.0, 3.0, 4.0], [7, 7, 7, 7])) is None
    assert length_correlation(scored([1.0, 1.0, 1.0, 1.0], [1, 2, 3, 4])) is None
    assert length_correlation(scored([1.0, 2.0, 3.0], [1, 2, 4])) is None
