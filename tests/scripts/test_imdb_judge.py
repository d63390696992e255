"""The judge of the movie-review run: a probability per review, fitted once, on labels alone."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import imdb_judge


@pytest.fixture(autouse=True)
def labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    good, bad = ["great fun", "great cast", "a great end"], ["awful bore", "awful cast", "an awful end"]
    rows = [{"text": text, "label": int(text in good), "source": "imdb"} for text in good + bad]
    for part in ("train", "eval"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"judge.{part}.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.setenv("IMDB_JUDGE_DATA", str(tmp_path))
    imdb_judge.judge.cache_clear()
    yield
    imdb_judge.judge.cache_clear()


def test_above_one_half_means_positive() -> None:
    scores = imdb_judge.positive(["This is", "This is"], [" great", " awful"], source=["imdb", "imdb"])
    assert 0 <= scores[1] < 0.5 < scores[0] <= 1


def test_a_text_without_known_words_is_undecided() -> None:
    assert imdb_judge.positive([""], [" zzz"]) == [pytest.approx(0.5, abs=0.01)]


def test_the_classifier_is_fitted_once() -> None:
    assert imdb_judge.judge() is imdb_judge.judge()


def test_the_report_names_accuracy_and_interval(capsys: pytest.CaptureFixture[str]) -> None:
    imdb_judge.report()
    assert capsys.readouterr().out == "imdb, excerpt              1.000  (0.610 to 1.000, n = 6)\n"
