"""The alarms of PPO's health rules as the report lists them."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.reading import Row


@dataclass(frozen=True)
class Alarm:
    """One alarm in words."""

    rule: str
    steps: str
    reading: str
    action: str
    advice: str


def listed(rows: Sequence[Row]) -> list[Alarm]:
    """The rows of alarms.jsonl, oldest first."""
    return [
        Alarm(
            rule=str(row.get("rule", "")).replace("_", " "),
            steps=f"{row['step']} to {'the end' if row.get('over') is None else row['over']}",
            reading=str(row.get("reading", "")),
            action=_action(row),
            advice=f"Likely cause: {row.get('cause', 'unknown')}. What to turn: {row.get('fix', 'unknown')}.",
        )
        for row in rows
    ]


def _action(row: Row) -> str:
    name, acted = str(row.get("action", "")), row.get("acted")
    when = ", ".join(map(str, acted)) if isinstance(acted, list) and acted else ""
    return f"{name} after step {when}" if when else name
