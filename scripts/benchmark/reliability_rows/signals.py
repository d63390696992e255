"""Polite signals: R14."""

from scripts.benchmark.scoreboard import Row

ROWS: dict[str, Row] = {}
