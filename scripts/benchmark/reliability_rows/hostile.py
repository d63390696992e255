"""Files that attack: R33, R34."""

from scripts.benchmark.scoreboard import Row

ROWS: dict[str, Row] = {}
