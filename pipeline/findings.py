"""What a look at config, files and environment found. Imports no torch."""

from dataclasses import dataclass, field

from pipeline.batch_plan import StagePlan
from stages.base import InputError


@dataclass
class Findings:
    """Filled by the checks one after the other; `rlhf check` prints it."""

    errors: list[InputError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a person should know and nothing is refused for."""
    fine: dict[str, list[str]] = field(default_factory=dict)
    """What was looked at and found in order, by part: a stage, `evaluation`, `environment`."""
    plan: list[StagePlan] = field(default_factory=list)

    def passed(self, part: str, what: str) -> None:
        """Note that something of a part is in order."""
        self.fine.setdefault(part, []).append(what)
