"""Held-out accuracy of groups of pairs, each with Wilson's 95 % interval. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.reward_model.calibration import Numbers, outcomes
from stages.reward_model.quality import wilson

QUARTERS = 4
DISTINCT = 6
"""Values up to which every margin of the data is a group of its own."""
SOURCES = 20
"""Sources shown, those with the most pairs; the others are one group."""


@dataclass(frozen=True)
class Group:
    """Accuracy of the pairs that have something in common."""

    name: str
    value: float
    low: float
    high: float
    n: int


def by_score_margin(margins: Numbers) -> list[Group]:
    """Quarters of abs(score of chosen - score of rejected): accuracy should rise with it."""
    return _by_quantile(margins, np.abs(margins))


def by_data_margin(margins: Numbers, given: Numbers) -> list[Group]:
    """The data's own `margin`: a group per value where there are few, else quarters."""
    values = np.unique(given)
    if len(values) > DISTINCT:
        return _by_quantile(margins, given)
    return [_group(f"{value:g}", margins, given == value) for value in values]


def by_length(margins: Numbers, differences: NDArray[np.int64]) -> list[Group]:
    """By tokens of chosen - tokens of rejected: shorter, the same, longer, with unequal pairs cut at the median."""
    unequal = np.abs(differences[differences != 0])
    cut = int(np.median(unequal)) if len(unequal) else 0
    near = "1" if cut == 1 else f"1 to {cut}"
    named = (
        (f"shorter by over {cut}", differences < -cut),
        (f"shorter by {near}", (-cut <= differences) & (differences < 0)),
        ("same length", differences == 0),
        (f"longer by {near}", (differences > 0) & (differences <= cut)),
        (f"longer by over {cut}", differences > cut),
    )
    return [_group(name, margins, which) for name, which in named if which.any()]


def by_source(margins: Numbers, sources: Sequence[str]) -> list[Group]:
    """By where a pair comes from, the largest first."""
    of_pairs = np.array(sources, dtype=object)
    ranked = sorted(Counter(sources).items(), key=lambda item: (-item[1], item[0]))
    shown = [name for name, _ in ranked[:SOURCES]]
    groups = [_group(name, margins, of_pairs == name) for name in shown]
    rest = ~np.isin(of_pairs, shown)
    return [*groups, _group(f"{len(ranked) - SOURCES} others", margins, rest)] if rest.any() else groups


def _by_quantile(margins: Numbers, values: Numbers) -> list[Group]:
    edges = np.unique(np.quantile(values, np.linspace(0, 1, QUARTERS + 1)))
    quarter = np.searchsorted(edges[1:-1], values, side="left")
    return [
        _group(f"{values[quarter == q].min():.3g} to {values[quarter == q].max():.3g}", margins, quarter == q)
        for q in np.unique(quarter)
    ]


def _group(name: str, margins: Numbers, which: NDArray[np.bool_]) -> Group:
    accuracy = wilson(float(outcomes(margins[which]).sum()), int(which.sum()))
    return Group(name, accuracy.value, accuracy.low, accuracy.high, accuracy.n)
