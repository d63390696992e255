"""Secrets that must not leak: R35."""

from scripts.benchmark.scoreboard import Row

ROWS: dict[str, Row] = {}
