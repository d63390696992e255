"""Runs that make no progress: R23."""

from scripts.benchmark.scoreboard import Row

ROWS: dict[str, Row] = {}
