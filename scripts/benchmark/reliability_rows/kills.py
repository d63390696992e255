"""Kills at random instants: R1, R2."""

from scripts.benchmark.scoreboard import Row

ROWS: dict[str, Row] = {}
