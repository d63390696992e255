"""Crashes and power cuts inside the save protocol: R3, R4."""

from scripts.benchmark.scoreboard import Row

ROWS: dict[str, Row] = {}
