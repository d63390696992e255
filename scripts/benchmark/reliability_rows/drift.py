"""Run folders that are in use or no longer fit: R18, R27."""

from scripts.benchmark.scoreboard import Row

ROWS: dict[str, Row] = {}
