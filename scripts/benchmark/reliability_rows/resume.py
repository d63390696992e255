"""The same bits after a resume: R7 to R11, R29."""

from scripts.benchmark.scoreboard import Row

ROWS: dict[str, Row] = {}
