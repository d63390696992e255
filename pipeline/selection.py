"""Which steps of a chain are asked for. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import STAGES, PipelineConfig
from pipeline.lineage import enabled_steps
from stages.base import InputError


@dataclass(frozen=True)
class Selection:
    """Which steps of the chain to walk, and which of them anew."""

    first: str | None = None
    """Start here; the steps before are taken as they are."""
    only: str | None = None
    """Just this one."""
    force: tuple[str, ...] = ()
    """Anew even when finished and unchanged; `all` for every selected step."""
    allow: tuple[str, ...] = ()
    """Fields that may differ from those of the checkpoint from which a step goes on."""

    def steps(self, config: PipelineConfig) -> list[str]:
        """The selected steps in their order.

        Raises:
            InputError: RUN03 a step that is unknown, disabled or not selected.
        """
        enabled = enabled_steps(config)
        for name in (self.first, self.only, *(n for n in self.force if n != "all")):
            _require_step(name, enabled)
        if self.only:
            selected = [self.only]
        else:
            selected = enabled[enabled.index(self.first) :] if self.first else enabled
        for name in self.force:
            if name != "all" and name not in selected:
                raise InputError("RUN03", f"--force {name}: that step is not selected", fix=f"add --only {name}")
        return selected

    def options(self) -> list[str]:
        """The same as options of `rlhf run`."""
        one = [(option, value) for option, value in (("--from", self.first), ("--only", self.only)) if value]
        many = [("--force", name) for name in self.force] + [("--allow", name) for name in self.allow]
        return [part for pair in (*one, *many) for part in pair]

    def forces(self, step: str) -> bool:
        """Whether `step` runs anew whatever is there."""
        return step in self.force or "all" in self.force


def _require_step(name: str | None, enabled: Sequence[str]) -> None:
    if name is None or name in enabled:
        return
    problem = f"no step '{name}' in this run; found {', '.join(enabled)}"
    fixes = {
        "evaluation": "add data.prompts.eval",
        **{stage: f"set {stage}.enabled=true" for stage in STAGES},
    }
    fix = fixes.get(name, "name one of these")
    raise InputError("RUN03", problem, fix=fix)
