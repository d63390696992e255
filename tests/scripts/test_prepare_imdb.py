"""The movie-review data: split by review, pairs that differ in sentiment alone, the same every time."""

import csv
import random
from pathlib import Path

import pytest

from scripts import prepare_imdb
from scripts.prepare_imdb import balanced, direction
from scripts.reviews import read_reviews

WORDS = ["plot", "actor", "scene", "light", "music", "sound", "story", "camera", "ending", "voice", "cast"]
HELD_OUT = {"demonstrations": 20, "preferences": 20, "prompts": 20}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,600 reviews of random words after a few common openings, some of them repeated."""
    source = random.Random(0)
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "source"])
        for number in range(1600):
            words = [source.choice(WORDS) for _ in range(source.randint(6, 28))]
            start = source.choice(["This movie", "The film", "I thought", "It has"])
            last = f"{start} {' '.join(words)}."
            imdb = number % 3 != 0
            text = f"Some opening remark {number}.<br /><br />{last}" if imdb else f"{last[:-1].lower()} ."
            for _ in range(1 + (number % 50 == 0)):
                writer.writerow([text, number % 2, "imdb" if imdb else "rotten_tomatoes"])
    return path


@pytest.fixture(scope="module")
def files(table: Path) -> dict[str, list[dict]]:
    return make(table, seed=0)


def make(table: Path, seed: int) -> dict[str, list[dict]]:
    return prepare_imdb.build(read_reviews(table, 8, 36), seed, 28, HELD_OUT)


def excerpts(files: dict[str, list[dict]], name: str) -> list[str]:
    ends = {"demonstrations": ["completion"], "preferences": ["chosen", "rejected"]}[name.partition(".")[0]]
    return [row["prompt"] + row[end] for row in files[name] for end in ends]


def test_no_text_is_in_two_splits(files: dict[str, list[dict]]) -> None:
    parts = [
        excerpts(files, f"{name}.{part}") for name in ("demonstrations", "preferences") for part in ("train", "eval")
    ]
    parts += [[row["text"] for row in files[f"judge.{part}"]] for part in ("train", "eval")]
    texts = [text.casefold() for part in parts for text in part]
    assert len(texts) == len(set(texts))


def test_training_and_held_out_prompts_differ(files: dict[str, list[dict]]) -> None:
    training, held_out = ({row["prompt"] for row in files[f"prompts.{part}"]} for part in ("train", "eval"))
    assert training and held_out
    assert not training & held_out


def test_the_two_sides_of_a_pair_share_opening_and_length(files: dict[str, list[dict]]) -> None:
    pairs = files["preferences.train"]
    assert len(pairs) > 100
    for row in pairs:
        assert row["prompt"] and row["chosen"][0] == row["rejected"][0] == " "
        assert abs(len(row["chosen"].split()) - len(row["rejected"].split())) <= 2


def test_chosen_is_positive_and_rejected_negative_of_the_same_source(table: Path, files: dict[str, list[dict]]) -> None:
    reviews = {review.excerpt: review for review in read_reviews(table, 8, 36)}
    for row in files["preferences.train"]:
        chosen, rejected = (reviews[row["prompt"] + row[side]] for side in ("chosen", "rejected"))
        assert (chosen.label, rejected.label) == (1, 0)
        assert chosen.source == rejected.source == row["source"]


@pytest.mark.parametrize("part", ["train", "eval"])
def test_longer_is_better_has_accuracy_one_half(files: dict[str, list[dict]], part: str) -> None:
    signs = [direction(row) for row in files[f"preferences.{part}"]]
    assert any(any(sign) for sign in signs)
    for measure in zip(*signs, strict=True):
        assert abs(sum(measure)) <= 1  # a cut between a row and its opposite leaves one over


def test_balancing_drops_the_surplus_of_one_direction() -> None:
    longer = {"chosen": " a b c", "rejected": " a b"}
    shorter = {"chosen": " a b", "rejected": " a b d"}
    assert balanced([longer, longer, shorter]) == [longer, shorter]
    assert balanced([longer]) == []


def test_the_same_seed_gives_the_same_files_and_another_seed_others(table: Path, files: dict[str, list[dict]]) -> None:
    assert make(table, seed=0) == files
    assert make(table, seed=1) != files


def test_where_a_review_goes_does_not_depend_on_the_other_reviews(table: Path) -> None:
    reviews = read_reviews(table, 8, 36)
    whole, half = prepare_imdb.split(reviews, 0), prepare_imdb.split(reviews[::2], 0)
    for part in whole:
        assert set(half[part]) <= set(whole[part])
