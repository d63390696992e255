"""Everything that can be known wrong before a model is loaded. Imports no torch.

Each kind of check has a module: environment, data_checks, model_checks, reward_checks, batch_plan, texts.
"""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline import batch_plan
from pipeline.batch_plan import StagePlan
from pipeline.config import PipelineConfig
from pipeline.data_checks import read_data
from pipeline.environment import environment_errors, wandb_errors
from pipeline.model_checks import length_errors, method_errors, model_errors, parent_errors
from pipeline.model_files import unsafe_models
from pipeline.problems import missing_path
from pipeline.reward_checks import reward_errors
from pipeline.texts.gate import Rows, check_texts
from stages.base import InputError


@dataclass
class Preflight:
    """What a look at config, files and environment found."""

    errors: list[InputError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a person should know and nothing is refused for."""
    fine: dict[str, list[str]] = field(default_factory=dict)
    """What was looked at and found in order, by stage."""
    plan: list[StagePlan] = field(default_factory=list)

    def passed(self, part: str, what: str) -> None:
        """Note that something of a stage, or of `environment`, is in order."""
        self.fine.setdefault(part, []).append(what)


def check(config: PipelineConfig) -> Preflight:
    """Validate packages, files, rows, batches, parents and reward functions; all mistakes together."""
    found = Preflight()
    missing = unprepared(config)
    if missing:
        found.notes.append(f"{config.prepare.script} will create {', '.join(missing)}; texts are checked after that")
        if not Path(config.prepare.script).is_file():
            found.errors.append(missing_path(config.prepare.script, "prepare.script"))
    data = read_data(config, deferred=bool(missing))
    found.errors += environment_errors()
    found.errors += wandb_errors(config)
    found.errors += data.errors
    found.errors += batch_plan.batch_errors(config, data.counts)
    unsafe = unsafe_models(config)
    found.errors += unsafe
    if not unsafe:  # else nothing in those folders is opened
        found.errors += model_errors(config, deferred=bool(missing))
        found.errors += length_errors(config)
    found.errors += parent_errors(config)
    found.errors += method_errors(config)
    found.errors += reward_errors(config)
    if not unsafe and not missing:
        _check_texts(config, data.rows, found)
    found.plan = batch_plan.plan(config, data.counts)
    return found


def _check_texts(config: PipelineConfig, rows: Rows, found: Preflight) -> None:
    texts = check_texts(config, rows)
    found.errors += texts.errors
    found.notes += texts.notes
    for stage, summary in texts.summaries:
        found.passed(stage, summary)


def unprepared(config: PipelineConfig) -> list[str]:
    """Those files of `prepare.creates` that do not exist yet."""
    return [path for path in config.prepare.creates if not Path(path).exists()] if config.prepare else []
