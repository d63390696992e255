"""Reward functions that break their contract: R21."""

from scripts.benchmark.scoreboard import Row

ROWS: dict[str, Row] = {}
