"""Memory, communication and time of each stage and role before one pays for them, from the sizes in a config.

Pure formulas over frozen dataclasses, each with its source; nothing here is measured.
`scripts/benchmark/planner_check.py` holds them against real stages, docs/scaling.md has what they say of machines that
we do not have.
"""
