"""The rows of the reliability scoreboard in small, as their own script measures them in full."""

from pathlib import Path

import pytest

from scripts.benchmark.reliability import ROWS


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.in_suite])
def test_a_row_of_the_scoreboard_meets_its_target_in_small(name: str, tmp_path: Path) -> None:
    figure = ROWS[name].measure(tmp_path, True)
    assert figure.passed, f"{ROWS[name].promise}: {figure.found} {figure.detail}"
