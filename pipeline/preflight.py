"""Everything that can be known wrong before a model is loaded. Imports no torch."""

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement

from pipeline import batch_plan
from pipeline.batch_plan import StagePlan
from pipeline.config import STAGES, PipelineConfig
from pipeline.lineage import data_of, enabled_steps
from pipeline.model_files import unsafe_models
from pipeline.parents import check_policy, check_reward_path, is_local, needs_reward_model
from pipeline.problems import missing_path
from pipeline.rundir import RunDir
from reward.base import RewardError, resolve
from stages.base import InputError
from stages.models.config import KEYS

_PACKAGE = "rlhf-pipeline"


@dataclass
class Preflight:
    """What a look at config, files and environment found."""

    errors: list[InputError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plan: list[StagePlan] = field(default_factory=list)


def check(config: PipelineConfig) -> Preflight:
    """Validate files, rows, batches, parents and reward functions; all mistakes together."""
    found = Preflight()
    missing = unprepared(config)
    if missing:
        found.notes.append(f"{config.prepare.script} will create {', '.join(missing)}")
        if not Path(config.prepare.script).is_file():
            found.errors.append(missing_path(config.prepare.script, "prepare.script"))
    rows = _read_data(config, found, deferred=bool(missing))
    found.errors += batch_plan.batch_errors(config, rows)
    unsafe = unsafe_models(config)
    found.errors += unsafe
    found.errors += list(_parent_errors(config))
    found.errors += list(_method_errors(config))
    found.errors += list(_reward_errors(config, with_models=not unsafe))
    if not unsafe:  # else nothing in those folders is opened
        found.errors += _collected(lambda: _check_model(config, deferred=bool(missing)))
        found.errors += list(_length_errors(config))
    found.plan = batch_plan.plan(config, rows)
    return found


def unprepared(config: PipelineConfig) -> list[str]:
    """Those files of `prepare.creates` that do not exist yet."""
    return [path for path in config.prepare.creates if not Path(path).exists()] if config.prepare else []


def environment_errors() -> list[InputError]:
    """DEP01: an installed package that is missing or outside the range that setup.cfg gives."""
    try:
        requirements = map(Requirement, importlib.metadata.requires(_PACKAGE) or [])
    except importlib.metadata.PackageNotFoundError:
        return []  # run from a checkout that is not installed: there are no ranges to compare with
    wanted = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return [error for requirement in wanted if (error := _version_error(requirement))]


def _version_error(requirement: Requirement) -> InputError | None:
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != "none" and requirement.specifier.contains(found, prereleases=True):
        return None
    problem = f"package {requirement.name}: found {found}, expected {requirement.specifier or 'any version'}"
    return InputError("DEP01", problem, fix=f"pip install -c constraints.txt '{requirement}'")


def _read_data(config: PipelineConfig, found: Preflight, deferred: bool) -> dict[str, int]:
    """Read every data file that an enabled stage uses; row counts by role."""
    from stages.classification import read_sft_rows
    from stages.data import read_preferences, read_prompts

    readers = {
        "demonstrations": lambda path: read_sft_rows(path, config.sft),
        "preferences": read_preferences,
        "prompts": read_prompts,
    }
    rows: dict[str, int] = {}
    for role, path in _data_files(config, found).items():
        if not path.is_file():
            if not deferred:
                found.errors.append(missing_path(path, f"data.{role}"))
            continue
        reader = readers[role.partition(".")[0]]
        try:
            rows[role] = len(reader(path))
        except InputError as error:
            found.errors.append(error)
    return rows


def _data_files(config: PipelineConfig, found: Preflight) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for step in enabled_steps(config):
        try:
            files |= data_of(config, step)
        except InputError as error:
            found.errors.append(error)
    return files


def _collected(check_it: Callable[[], None]) -> list[InputError]:
    try:
        check_it()
    except InputError as error:
        return [error]
    return []


def _check_model(config: PipelineConfig, deferred: bool) -> None:
    path = config.model.path
    if is_local(path) and not Path(path).exists():
        if not deferred:
            raise missing_path(path, "model.path")
        return
    check_policy(path)


def _parent_errors(config: PipelineConfig) -> Iterator[InputError]:
    run = RunDir(Path(config.run.root) / config.run.name)
    yield from _collected(run.refuse_links)
    lacks = needs_reward_model(config) and not config.reward_model.enabled
    if config.ppo.enabled and lacks and not run.stage("reward_model").finished:
        problem = "a reward term uses reward_model, but that stage is disabled and this run has none"
        yield InputError("STAGE07", problem, fix="set reward_model.enabled=true, or change `reward`")
    if not enabled_steps(config):
        yield InputError("STAGE07", "no stage is enabled", fix="set sft.enabled=true")


def _method_errors(config: PipelineConfig) -> Iterator[InputError]:
    """TUNE05: a method that is neither ours nor a PEFT type, or arguments that its config class does not have.

    TUNE06: virtual tokens in PPO that no SFT has trained. DEP02: four bits without the library for them.
    """
    if config.model.quantization == "4bit" and importlib.util.find_spec("bitsandbytes") is None:
        problem = "model.quantization: 4bit needs the package bitsandbytes, which is not installed"
        yield InputError("DEP02", problem, fix="pip install 'rlhf-pipeline[4bit]', or quantization: none")
    starts_at_model = config.ppo.enabled and not config.sft.enabled
    adapter = Path(config.model.path) / "adapter_config.json"
    if starts_at_model and config.ppo.tuning.uses_virtual_tokens and not adapter.is_file():
        problem = f"ppo.tuning.method {config.ppo.tuning.method} without sft: new virtual tokens change the policy"
        yield InputError("TUNE06", problem, fix="set sft.enabled=true with the same tuning, or use lora or full")
    tunings = [getattr(config, stage).tuning for stage in STAGES if getattr(config, stage).enabled]
    named = [tuning for tuning in tunings if tuning.method not in KEYS]
    if named:
        from stages.models.peft_types import check_peft_type  # torch: only for those who name a PEFT type

        for tuning in named:
            yield from _collected(lambda tuning=tuning: check_peft_type(tuning))


def _reward_errors(config: PipelineConfig, with_models: bool) -> Iterator[InputError]:
    functions = [term.function for term in config.reward if term.function]
    models = [term.model for term in config.reward if term.model not in (None, "reward_model")]
    for model in models if with_models else ():
        yield from _collected(lambda model=model: check_reward_path(model))
    judge = config.evaluation.judge
    if judge in functions:
        problem = f"evaluation.judge {judge} is also a reward term, so it would judge what was trained on it"
        yield InputError("CONF09", problem, fix="use a function that training has not seen")
    for spec in dict.fromkeys([*functions, *([judge] if judge else [])]):
        yield from _collected(lambda spec=spec: _resolve(spec))


def _resolve(spec: str) -> None:
    try:
        resolve(spec)
    except RewardError as error:
        problem, _, fix = str(error).removeprefix(f"[{error.code}] ").rpartition("; fix: ")
        raise InputError(error.code, problem, fix=fix) from error
    except Exception as error:  # importing a user's file can fail in any way
        problem = f"reward function '{spec}' cannot be imported ({type(error).__name__}: {error})"
        raise InputError("REW04", problem, fix="correct that file") from error


def _length_errors(config: PipelineConfig) -> Iterator[InputError]:
    """LEN01: a stage whose longest sequence exceeds what the model can attend to."""
    file = Path(config.model.path) / "config.json"
    context = json.loads(file.read_text(encoding="utf-8")).get("max_position_embeddings") if file.is_file() else None
    lengths = {
        "sft": ("max_length", config.sft.max_length),
        "reward_model": ("max_length", config.reward_model.max_length),
        "ppo": (
            "max_prompt_tokens + max_new_tokens",
            config.ppo.max_prompt_tokens + config.ppo.max_new_tokens,
        ),
    }
    for stage, (keys, tokens) in lengths.items():
        if context and getattr(config, stage).enabled and tokens > context:
            problem = f"{stage}.{keys} is {tokens} tokens, more than the model's context {context}"
            yield InputError("LEN01", problem, fix=f"lower {stage}.{keys}")
