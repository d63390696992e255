"""One figure per term of the reward, in the units of its source, where there are several."""

import re

from pipeline.report.panels import Curve, Panel
from pipeline.report.reading import StageRecord

_MEAN = re.compile(r"objective/weighted/([\w.-]+)")  # what else a damaged log may hold is no name


def term_panels(stage: StageRecord) -> list[Panel]:
    """What each source says of rollouts and of held-out prompts; empty for a reward of one term, which is the score."""
    matches = [_MEAN.fullmatch(metric) for metric in dict.fromkeys(metric for row in stage.metrics for metric in row)]
    names = [match[1] for match in matches if match]
    return [_panel(name) for name in names] if len(names) > 1 else []


def _panel(name: str) -> Panel:
    return Panel(
        f"Reward term {name}",
        "One part of the reward: a term that falls while the score rises is being traded away.",
        f"{name} (its own units)",
        (
            Curve(f"objective/term/{name}", "rollouts"),
            Curve(f"eval/term/{name}", "held out", "points"),
            Curve(f"objective/weighted/{name}", "share of the score", right=True),
        ),
        right="share of the score (reward units)",
    )
