from pathlib import Path

import pytest


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data file with a short name in messages; it does not exist yet."""
    monkeypatch.chdir(tmp_path)
    return Path("data.jsonl")
