"""Everything that can be known wrong before a model is loaded. Imports no torch.

Each kind of check has a module: environment, data_checks, model_checks, reward_checks, batch_plan, texts.
"""

from pathlib import Path

from pipeline import batch_plan
from pipeline.config import PipelineConfig
from pipeline.config_loading import LoadedConfig
from pipeline.data_checks import check_data, check_sizes, counts, data_files, read_data
from pipeline.deepspeed_file import deepspeed_errors
from pipeline.environment import environment_errors, versions_line, wandb_errors, wandb_note
from pipeline.findings import Findings
from pipeline.launchers import missing_program, world_of
from pipeline.model_checks import check_models, length_errors, method_errors, parent_errors
from pipeline.problems import InputErrors, missing_path
from pipeline.reward_checks import check_rewards
from pipeline.storage import room_errors, room_line, writing_errors
from pipeline.texts.gate import check_texts
from stages.base import InputError


def check(config: PipelineConfig) -> Findings:
    """Validate packages, files, rows, batches, parents and reward functions; all mistakes together."""
    found = Findings()
    missing = unprepared(config)
    if missing:
        found.notes.append(f"{config.prepare.script} will create {', '.join(missing)}; texts are checked after that")
        if not Path(config.prepare.script).is_file():
            found.errors.append(missing_path(config.prepare.script, "prepare.script"))
    check_environment(config, found)
    found.errors += deepspeed_errors(config)
    ranks = check_hosts(config, found)
    files = data_files(config, found)
    rows = read_data(config, files, bool(missing), found)
    check_data(files, rows, config.check, found)
    check_sizes(config, rows, found)
    found.errors += batch_plan.batch_errors(config, counts(rows), ranks)
    safe = check_models(config, bool(missing), found)
    if safe:
        found.errors += length_errors(config)
    found.errors += parent_errors(config)
    found.errors += method_errors(config)
    check_rewards(config, rows, found)
    check_storage(config, safe, found)
    if safe and not missing:
        check_texts(config, rows, found)
    found.plan = batch_plan.plan(config, counts(rows), ranks)
    return found


def check_environment(config: PipelineConfig, found: Findings) -> None:
    """Packages and W&B."""
    errors = [*environment_errors(), *wandb_errors(config)]
    found.errors += errors
    if not errors:
        found.passed("environment", versions_line())
        found.passed("environment", wandb_note(config))


def check_hosts(config: PipelineConfig, found: Findings) -> int:
    """The hosts that a run of several processes names; how many ranks they are, 1 when that cannot be known.

    `rlhf check --nodes` looks at the hosts themselves.
    """
    if config.launch.alone:
        return 1
    try:
        world = world_of(config.launch)
    except InputError as error:
        found.errors += error.errors if isinstance(error, InputErrors) else [error]
        return 1
    absent = missing_program(config.launch)
    if absent:
        found.errors.append(absent)
    else:
        found.passed("launch", f"{config.launch.starter}: {world}")
    return world.size


def check_storage(config: PipelineConfig, safe: bool, found: Findings) -> None:
    """That the run's folder can be written, and has room for the checkpoints and models."""
    errors = writing_errors(config) or (room_errors(config) if safe else [])
    found.errors += errors
    if not errors:
        found.passed("environment", room_line(config))


def check_beside(loaded: LoadedConfig) -> list[InputError]:
    """What is wrong with the files that a config names, and with the environment, when the config itself has mistakes.

    Sections with a mistake are left out, and so is whatever follows from numbers of the config.
    """
    config, found = loaded.rest, Findings()
    if config is None:
        return []
    check_environment(config, found)
    found.errors += deepspeed_errors(config)
    if not loaded.doubts(("launch",)):
        check_hosts(config, found)
    missing = unprepared(config)
    named = data_files(config, Findings())  # a stage without data may be due to a mistake that is told already
    files = {role: path for role, path in named.items() if not loaded.doubts(*_DECISIVE[role.partition(".")[0]])}
    rows = read_data(config, files, bool(missing), found)
    check_data(files, rows, config.check, found)
    if not loaded.doubts(("model",), ("reward",), ("reward_model", "path")):
        check_models(config, bool(missing), found)
    if not loaded.doubts(("reward",), ("evaluation",), ("check",)):
        check_rewards(config, rows, found)
    return found.errors


_DECISIVE = {
    "demonstrations": (("data", "demonstrations"), ("sft", "classification")),
    "preferences": (("data", "preferences"),),
    "prompts": (("data", "prompts"),),
}
"""Keys that decide how the rows of a file are read."""


def unprepared(config: PipelineConfig) -> list[str]:
    """Those files of `prepare.creates` that do not exist yet."""
    return [path for path in config.prepare.creates if not Path(path).exists()] if config.prepare else []
