"""What a rollout's completions look like as texts: how often they repeat others or themselves, and what pays."""

from collections.abc import Sequence

from torch import Tensor

from stages.ppo.experience import Experience
from stages.ppo.metrics import Metrics

NGRAM = 4


def text_metrics(e: Experience, completions: Sequence[str]) -> Metrics:
    """`completions` are the decoded texts of all rows of the experience."""
    lengths = e.mask.sum(1)
    return {
        "rollout/unique_fraction": len(set(completions)) / len(completions),
        "rollout/repeated_4grams": repeated_ngrams(e.completions, e.mask, NGRAM),
        "objective/score_length_correlation": correlation(e.scores[e.stopped], lengths[e.stopped]),
    }


def repeated_ngrams(ids: Tensor, mask: Tensor, n: int) -> float:
    """Fraction of the n-grams of tokens [B, T] that their completion had before; 0 where there are none.

    >>> repeated_ngrams(torch.tensor([[1, 2, 1, 2, 1]]), torch.ones(1, 5, dtype=torch.bool), 2)
    0.5
    """
    total = distinct = 0
    for row, kept in zip(ids.cpu(), mask.cpu(), strict=True):
        tokens = row[kept].tolist()
        grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
        total += len(grams)
        distinct += len(set(grams))
    return (total - distinct) / total if total else 0.0


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation of two vectors; 0 where one does not vary."""
    a, b = (x.double() - x.double().mean() for x in (a, b))
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else 0.0
