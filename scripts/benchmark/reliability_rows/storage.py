"""Full disks, retention, the price of safety: R16, R17, R26, R30."""

from scripts.benchmark.scoreboard import Row

ROWS: dict[str, Row] = {}
