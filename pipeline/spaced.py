"""Some of many, that nobody picked."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def spaced(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items at even distances, the first and the last among them.

    >>> spaced([0, 1, 2, 3, 4, 5, 6], 3)
    [0, 3, 6]
    """
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]
