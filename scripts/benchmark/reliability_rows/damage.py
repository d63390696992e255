"""Damaged checkpoints: R5, R6."""

from scripts.benchmark.scoreboard import Row

ROWS: dict[str, Row] = {}
