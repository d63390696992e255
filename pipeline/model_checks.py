"""Models, methods and lengths as far as files tell, before any of them is loaded. Imports no torch.

Only a config that names a PEFT type by itself makes this import torch, to ask that type's config class.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.config import STAGES, PipelineConfig
from pipeline.environment import four_bit_errors
from pipeline.findings import Findings
from pipeline.lineage import enabled_steps
from pipeline.model_files import unsafe_models
from pipeline.parents import check_policy, check_reward_path, is_local, needs_reward_model
from pipeline.problems import missing_path
from pipeline.rundir import RunDir
from reward.config import OWN
from stages.base import InputError
from stages.models.adapter_files import adapter_errors
from stages.models.classifier_facts import is_foreign
from stages.models.config import KEYS
from stages.models.facts import facts_of
from stages.models.trusted import adapter_base


def collected(check_it: Callable[[], None]) -> list[InputError]:
    """What a check that raises has to say."""
    try:
        check_it()
    except InputError as error:
        return [error]
    return []


def check_models(config: PipelineConfig, deferred: bool, found: Findings) -> bool:
    """The base model and the models that reward terms name; whether their folders may be opened.

    PATH01, PEFT01, PEFT02, RM01, RM04, RM07, STAGE01, STAGE02, SAFE01 to SAFE05. A `deferred` model may still be
    made by the prepare script.
    """
    unsafe = unsafe_models(config)
    errors = unsafe or list(_model_errors(config, deferred))  # nothing in unsafe folders is opened
    found.errors += errors
    if not errors:
        found.passed("model", f"{config.model.path} is no reward model and runs no code")
    return not unsafe


def _model_errors(config: PipelineConfig, deferred: bool) -> Iterator[InputError]:
    yield from _base_errors(config.model.path, "model.path", deferred)
    if config.reward_model.enabled and config.reward_model.path:
        yield from _base_errors(config.reward_model.path, "reward_model.path", deferred)
    for term in config.reward:
        for model in (model for model in term.models if model != OWN):
            yield from _reward_model_errors(model, term.label_index)


def _reward_model_errors(model: str, label_index: int | None) -> Iterator[InputError]:
    wrong = collected(lambda: check_reward_path(model, label_index))
    yield from wrong
    base = None if wrong else adapter_base(model)
    if base is not None and is_foreign(model):  # PEFT compares it with its base
        yield from [missing_path(base, f"the base of the adapter {model}")] if lacking(base) else []
    elif base is not None:
        yield from _adapter_errors(model, "reward model")


def lacking(base: str) -> bool:
    """Whether a model can only mean a folder or file that is not there."""
    return is_local(base) and not Path(base).exists()


def _base_errors(path: str, key: str, deferred: bool) -> Iterator[InputError]:
    if is_local(path) and not Path(path).exists():
        if not deferred:
            yield missing_path(path, key)
        return
    wrong = collected(lambda: check_policy(path))
    yield from wrong or _adapter_errors(path, key)


def _adapter_errors(path: str, key: str) -> Iterator[InputError]:
    """PATH01, PEFT01, PEFT02: an adapter whose base is not there or not its own, or that is not whole."""
    base = adapter_base(path)
    if base is not None and lacking(base):
        yield missing_path(base, f"the base of the adapter {path} ({key})")
    elif base is not None:
        yield from adapter_errors(Path(path))


def parent_errors(config: PipelineConfig) -> Iterator[InputError]:
    """STAGE07: a stage needs another that will not run and has not run. RUN05: the run folder is a link."""
    run = RunDir(Path(config.run.root) / config.run.name)
    yield from collected(run.refuse_links)
    lacks = needs_reward_model(config) and not config.reward_model.enabled
    if config.ppo.enabled and lacks and not run.stage("reward_model").finished:
        problem = "a reward term uses reward_model, but that stage is disabled and this run has none"
        yield InputError("STAGE07", problem, fix="set reward_model.enabled=true, or change `reward`")
    if not enabled_steps(config):
        yield InputError("STAGE07", "no stage is enabled", fix="set sft.enabled=true")


def method_errors(config: PipelineConfig) -> Iterator[InputError]:
    """TUNE05: a method that is neither ours nor a PEFT type, or arguments that its config class does not have.

    TUNE06: virtual tokens in PPO that no SFT has trained. DEP02: four bits without the library for them.
    """
    yield from four_bit_errors(config)
    starts_at_model = config.ppo.enabled and not config.sft.enabled
    adapter = Path(config.model.path) / "adapter_config.json"
    if starts_at_model and config.ppo.tuning.uses_virtual_tokens and not adapter.is_file():
        problem = f"ppo.tuning.method {config.ppo.tuning.method} without sft: new virtual tokens change the policy"
        yield InputError("TUNE06", problem, fix="set sft.enabled=true with the same tuning, or use lora or full")
    tunings = {stage: getattr(config, stage).tuning for stage in STAGES if getattr(config, stage).enabled}
    named = {stage: tuning for stage, tuning in tunings.items() if tuning.method not in KEYS}
    if named:
        from stages.models.peft_types import check_peft_type  # torch: only for those who name a PEFT type

        for stage, tuning in named.items():
            for error in collected(lambda tuning=tuning: check_peft_type(tuning)):
                yield InputError(error.code, f"{stage}.tuning: {error.problem}", error.fix)


def length_errors(config: PipelineConfig) -> Iterator[InputError]:
    """LEN01: a stage whose longest sequence exceeds what the model can attend to."""
    context = facts_of(config.model.path).context
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
