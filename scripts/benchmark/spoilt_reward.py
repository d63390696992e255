"""A reward function that gives NaN when told to."""

from collections.abc import Sequence
from typing import Any


def length(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """Characters of each completion; NaN for the second while the attribute `bad` is set."""
    scores = [float(len(completion)) for completion in completions]
    return [scores[0], float("nan"), *scores[2:]] if length.bad else scores


length.bad = False
