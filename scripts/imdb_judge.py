"""A judge that took no part in training: is a movie review positive?

    python scripts/imdb_judge.py        (its accuracy on reviews it has not seen)

A linear classifier over words and word pairs, fitted on human labels of reviews that no stage was trained on.
Needs the files of scripts/prepare_imdb.py.
"""

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.reward_model.quality import wilson

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

FOLDER = Path(__file__).resolve().parent.parent / "data" / "imdb"
WORDS = r"\b\w[\w']*\b|[!?*]"
"""Words with their apostrophes (don't), and the marks that reviewers use for emphasis and ratings."""


def positive(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """Probability that each review, opening and continuation together, is positive."""
    return probabilities([prompt + completion for prompt, completion in zip(prompts, completions, strict=True)])


def probabilities(texts: Sequence[str]) -> list[float]:
    """Probability of a positive label for each text."""
    return judge().predict_proba(texts)[:, 1].tolist()


@functools.cache
def judge() -> "Pipeline":
    """The classifier, fitted once per process (a few seconds): nothing is stored, so nothing can be stale."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes seconds, and a check only looks for `positive`
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rows = read("judge.train.jsonl")
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, token_pattern=WORDS)
    classifier = make_pipeline(words, LogisticRegression(C=10, max_iter=300))
    return classifier.fit([row["text"] for row in rows], [row["label"] for row in rows])


def read(name: str) -> list[dict[str, Any]]:
    """Rows of one of the judge's files, from IMDB_JUDGE_DATA or data/imdb."""
    path = Path(os.environ.get("IMDB_JUDGE_DATA", FOLDER)) / name
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def report() -> None:
    """Print the accuracy per kind of text, with its 95 % interval."""
    rows = read("judge.eval.jsonl")
    hits: dict[str, list[bool]] = {}
    for row, probability in zip(rows, probabilities([row["text"] for row in rows]), strict=True):
        kind = f"{row['source']}, {'excerpt' if len(row['text'].split()) <= 40 else 'whole review'}"
        hits.setdefault(kind, []).append((probability > 0.5) == bool(row["label"]))
    for kind, correct in sorted(hits.items()):
        accuracy = wilson(sum(correct), len(correct))
        print(f"{kind:26} {accuracy.value:.3f}  ({accuracy.low:.3f} to {accuracy.high:.3f}, n = {accuracy.n})")


if __name__ == "__main__":
    report()
