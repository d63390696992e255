"""A file of texts in numbers: lengths, what the limit does to them, how much of them is learned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.texts.stages import Fate, StageTexts


@dataclass(frozen=True)
class Summary:
    """Of the rows that were looked at; lengths in tokens, of a pair the longer side."""

    rows: int
    looked_at: int
    median: int
    high: int
    """95 of 100 rows are no longer."""
    longest: int
    limit: int
    limit_key: str
    fates: Mapping[Fate, int]
    """Rows that are cut, and that are left out for each reason."""
    target_share: float | None
    """Fraction of the tokens trained on that carry loss; None where loss is not per token."""

    def facts(self) -> list[tuple[str, str]]:
        """The same as (name, text)."""
        rows = f"{self.rows}" if self.looked_at == self.rows else f"{self.rows} ({self.looked_at} looked at)"
        share = [("tokens with loss", f"{self.target_share:.0%}")] if self.target_share is not None else []
        return [
            ("rows", rows),
            ("tokens", f"median {self.median}, 95 % within {self.high}, longest {self.longest}"),
            (self.limit_key, str(self.limit)),
            *((fate, str(count)) for fate, count in self.fates.items()),
            *share,
        ]

    def __str__(self) -> str:
        return "; ".join(f"{name} {text}" for name, text in self.facts())


def summarised(texts: StageTexts, items: Sequence[Any], rows: int) -> Summary:
    """The summary of a file of `rows` rows by those of them that were rendered; there is at least one."""
    lengths = sorted(max(map(len, texts.ids(item))) for item in items)
    fates = [texts.fate(item) for item in items]
    kept = [item for item, fate in zip(items, fates, strict=True) if fate in ("", "cut")]
    learned = [texts.targets(item) for item in kept]
    share = None
    if learned and None not in learned:
        share = sum(learned) / sum(min(len(ids), texts.limit) for item in kept for ids in texts.ids(item))
    return Summary(
        rows=rows,
        looked_at=len(items),
        median=percentile(lengths, 50),
        high=percentile(lengths, 95),
        longest=lengths[-1],
        limit=texts.limit,
        limit_key=texts.limit_key,
        fates={fate: fates.count(fate) for fate in texts.fates},
        target_share=share,
    )


def percentile(ascending: Sequence[int], percent: int) -> int:
    """The smallest of the numbers that at least `percent` of 100 of them do not exceed.

    >>> percentile([1, 2, 3, 4], 50), percentile([1, 2, 3, 4], 95)
    (2, 4)
    """
    return ascending[max(0, -(-len(ascending) * percent // 100) - 1)]
