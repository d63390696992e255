"""Numbers that are not finite: R19."""

from scripts.benchmark.scoreboard import Row

ROWS: dict[str, Row] = {}
