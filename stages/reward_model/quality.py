"""How good a reward model is, and how sure that is. Pure functions of scores and lengths."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Proportion:
    """A fraction of n trials with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def wilson(successes: float, n: int, z: float = 1.959964) -> Proportion:
    """Wilson's score interval (1927): `(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`."""
    if n == 0:
        return Proportion(float("nan"), 0.0, 1.0, 0)
    p = successes / n
    centre, scale = p + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Proportion(p, max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale), n)


def pair_accuracy(chosen: Sequence[float], rejected: Sequence[float]) -> Proportion:
    """Fraction of pairs in which the chosen text scores higher; a tie is half a success."""
    wins = sum(1.0 if c > r else 0.5 if c == r else 0.0 for c, r in zip(chosen, rejected, strict=True))
    return wilson(wins, len(chosen))


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (ddof 0)."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
