"""Metrics of a completion's text as reward functions: 0 to 1, one per completion. Imports no torch.

A `references` entry is one text, a list of texts, or None where the metric does not apply to that row; the best of
several counts, but for BLEU, which is defined over several.
"""

import json
import re
import string
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

Scores = list[float | None]
References = Sequence[str | Sequence[str] | None]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def bleu(completions: Sequence[str], references: References, tokenize: str, lowercase: bool, **columns: Any) -> Scores:
    """Sentence BLEU / 100 by sacrebleu: up to 4-grams, effective order, exponential smoothing (arXiv 1804.08771)."""
    scorer = _bleu(tokenize, lowercase)
    return _compared(completions, references, lambda text, several: scorer.sentence_score(text, several).score / 100)


def chrf(
    completions: Sequence[str], references: References, word_order: int, lowercase: bool, **columns: Any
) -> Scores:
    """Sentence chrF / 100 by sacrebleu: F2 of character n-grams up to 6 (Popovic 2015); word_order 2 is chrF++."""
    scorer = _chrf(word_order, lowercase)
    return _compared(completions, references, lambda text, several: scorer.sentence_score(text, several).score / 100)


def rouge1(completions: Sequence[str], references: References, **options: Any) -> Scores:
    """F-measure of the words by rouge-score (Lin 2004)."""
    return _rouge("rouge1", completions, references, options)


def rouge2(completions: Sequence[str], references: References, **options: Any) -> Scores:
    """F-measure of the word pairs by rouge-score (Lin 2004)."""
    return _rouge("rouge2", completions, references, options)


def rougeL(completions: Sequence[str], references: References, **options: Any) -> Scores:
    """F-measure of the longest common subsequence of words by rouge-score (Lin 2004)."""
    return _rouge("rougeL", completions, references, options)


def exact_match(completions: Sequence[str], references: References, normalise: bool, **columns: Any) -> Scores:
    """1 where the completion equals a reference, white space at the ends aside, else 0.

    With `normalise`, letters are lower-cased, and ASCII punctuation, the words a, an, the and surplus white space do
    not count (arXiv 1606.05250).
    """
    read = _plain_words if normalise else str.strip
    return _compared(completions, references, lambda text, several: float(read(text) in map(read, several)))


def regex(completions: Sequence[str], pattern: str, **columns: Any) -> Scores:
    """1 where `pattern` is found anywhere in the completion, else 0."""
    found = re.compile(pattern).search
    return [float(found(text) is not None) for text in completions]


def json_valid(completions: Sequence[str], required: Sequence[str], **columns: Any) -> Scores:
    """1 where the whole completion is JSON (RFC 8259), and an object with the `required` keys if there are any."""
    return [float(_is_json(text, required)) for text in completions]


def length(
    completions: Sequence[str], target: float, tolerance: float, falloff: float | None, unit: str, **columns: Any
) -> Scores:
    """1 within `tolerance` of `target`, from there falling linearly to 0 over `falloff` (or `target`) units."""
    parts = {"words": map(str.split, completions), "characters": completions, "tokens": columns.get("completion_ids")}
    excesses = (max(0.0, abs(len(part) - target) - tolerance) for part in parts[unit])
    return [max(0.0, 1.0 - excess / (falloff or target)) for excess in excesses]


def repetition(completions: Sequence[str], n: int, **columns: Any) -> Scores:
    """Fraction of a completion's word n-grams that occurred before in it; 0 below n + 1 words.

    With a negative weight it is a penalty.
    """
    return [_repeated(text.split(), n) for text in completions]


def _compared(completions: Sequence[str], references: References, score: Callable[[str, list[str]], float]) -> Scores:
    pairs = zip(completions, references, strict=True)
    return [None if r is None else min(1.0, score(c, [r] if isinstance(r, str) else list(r))) for c, r in pairs]


def _rouge(kind: str, completions: Sequence[str], references: References, options: dict[str, Any]) -> Scores:
    scorer = _rouge_scorer(kind, options["tokenizer"], options["stemmer"])
    return _compared(
        completions,
        references,
        lambda text, several: max(scorer.score(reference, text)[kind].fmeasure for reference in several),
    )


@lru_cache
def _bleu(tokenize: str, lowercase: bool) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=tokenize, lowercase=lowercase, effective_order=True)


@lru_cache
def _chrf(word_order: int, lowercase: bool) -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF(word_order=word_order, lowercase=lowercase)


@lru_cache
def _rouge_scorer(kind: str, tokenizer: str, stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=stemmer, tokenizer=_WordTokenizer() if tokenizer == "words" else None)


class _WordTokenizer:
    """Lower-case runs of word characters of any script."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


def _plain_words(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _is_json(text: str, required: Sequence[str]) -> bool:
    try:
        value = json.loads(text, parse_constant=_no_json, parse_int=str)  # str: no limit on digits
    except (ValueError, RecursionError):
        return False
    return not required or (isinstance(value, dict) and value.keys() >= set(required))


def _no_json(constant: str) -> None:
    raise ValueError(constant)  # NaN and Infinity are Python's


def _repeated(words: Sequence[str], n: int) -> float:
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
