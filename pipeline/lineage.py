"""What a stage is made from: data and parents, whether they fit and are unchanged. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import STAGES, PipelineConfig, SplitConfig
from pipeline.config_loading import plain
from pipeline.deepspeed_file import deepspeed_errors
from pipeline.hashing import FileHashes, model_files, sha256_of
from pipeline.identity import Identity, flat
from pipeline.model_files import require_safe_models
from pipeline.parents import check_fit, check_policy, foreign_reward_models, is_local, parents_of
from pipeline.problems import missing_path, raise_together
from pipeline.rundir import RunDir
from reward.remote_config import WITHOUT_EFFECT
from reward.settings import Settings
from stages.base import InputError
from stages.ppo.config import PPOConfig
from stages.redaction import redactor

# Keys of a stage's section that decide when it runs or what it keeps, not what comes out.
_WITHOUT_EFFECT = {"enabled", "checkpoint_every", "keep_checkpoints", "on_nonfinite", "max_skipped_batches", "health"}
# Keys that came later, with the value that stands for what was done before: a stage that was made then is unchanged.
_CAME_LATER = {"members": 1}
# Keys that a finished stage is judged by: recorded as null, the value that stands for no demand.
_DEMANDS = {"minimum_accuracy"}


@dataclass(frozen=True)
class StageInputs:
    """All that determines the result of a stage."""

    data: Mapping[str, Path]
    """JSONL files by role, such as `prompts.train`."""
    parents: Mapping[str, Path]
    """`final/` folders of this run by stage."""
    identity: Identity
    """Everything that determines the result, field by field."""
    record: Mapping[str, Any]
    """What of it people look for in stage.json."""


def inputs_of(run: RunDir, config: PipelineConfig, stage: str) -> StageInputs:
    """Collect a stage's inputs and refuse parents that do not fit.

    Raises:
        InputError: DS01 and DS02 as in pipeline.deepspeed_file, SAFE01 to SAFE05 as in pipeline.model_files,
            STAGE01 to STAGE05 as in pipeline.parents,
            STAGE08 parent not finished, PATH01 no such file, CONF08 no data named.
    """
    hashes = run.hashes()
    raise_together(deepspeed_errors(config))
    require_safe_models(config)
    check_policy(config.model.path)
    path = (stage == "reward_model" and config.reward_model.path) or config.model.path
    base = {"id": path, "hash": _base_hash(path, hashes)}
    data = data_of(config, stage)
    data_hashes = {role: _data_hash(role, path, hashes) for role, path in data.items()}
    parents = parents_of(run, config, stage)
    check_fit(parents, base, config)
    finals = {name: folder.manifest["final_hash"] for name, folder in parents.items()}
    fields: dict[str, Any] = {
        "stage": stage,
        **dict(flat(stage, _effective(getattr(config, stage)))),
        **(dict(flat("ppo", _effective(config.ppo))) if stage == "evaluation" else {}),
        **dict(flat("model", {k: v for k, v in plain(config.model).items() if k != "path"})),
        **dict(flat("trunk", plain(config.trunk))),
        "seed": config.seed,
        **_base_files(path, hashes),
        **{f"data.{role}": digest for role, digest in data_hashes.items()},
        **dict(flat("sft.classification", _template(config, data))),
        **{f"parents.{name}": digest for name, digest in finals.items()},
        **(_reward(config, hashes) if stage in ("ppo", "evaluation") else {}),
    }
    paths = {
        **{name: path for name in fields if name.startswith("base/")},
        **{f"data.{role}": str(file) for role, file in data.items()},
        **{f"parents.{name}": str(folder.final) for name, folder in parents.items()},
    }
    section = plain(getattr(config, stage))
    record = {
        "parents": {n: {"path": str(f.final), "final_hash": finals[n]} for n, f in parents.items()},
        "base": base,
        "config": section,
        "config_hash": sha256_of(section),
        "data": {str(data[role]): digest for role, digest in data_hashes.items()},
    }
    identity = Identity(redactor().tree(fields), paths)
    return StageInputs(data, {n: f.final for n, f in parents.items()}, identity, record)


def data_of(config: PipelineConfig, stage: str) -> dict[str, Path]:
    """The data files a stage reads, by role.

    Raises:
        InputError: CONF08 the config names none.
    """
    role, parts = {
        "sft": ("demonstrations", ("train", "eval")),
        "reward_model": ("preferences", ("train", "eval")),
        "ppo": ("prompts", ("train", "eval")),
        "evaluation": ("prompts", ("eval",)),
    }[stage]
    files = _split(role, getattr(config.data, role), parts)
    if not files:
        problem = f"{stage} needs data.{role}.{parts[0]}, which the config does not name"
        raise InputError("CONF08", problem, fix=f"add it, or set {stage}.enabled=false")
    if stage == "ppo" and config.ppo.ptx_coef:
        files |= _split("demonstrations", config.data.demonstrations, ("train",))
    if stage == "reward_model" or stage != "sft" and foreign_reward_models(config):
        # scores are centred on demonstrations, held-out ones where there are any
        shown = _split("demonstrations", config.data.demonstrations, ("eval", "train"))
        files |= dict(list(shown.items())[:1])
    return files


def enabled_steps(config: PipelineConfig) -> list[str]:
    """The stages of a run in their order, then the evaluation when there are held-out prompts for it."""
    stages = [stage for stage in STAGES if getattr(config, stage).enabled]
    return [*stages, "evaluation"] if config.data.prompts and config.data.prompts.eval else stages


def _split(role: str, split: SplitConfig | None, parts: tuple[str, ...]) -> dict[str, Path]:
    paths = {part: getattr(split, part) for part in parts} if split else {}
    return {f"{role}.{part}": Path(path) for part, path in paths.items() if path}


def _effective(section: Settings) -> dict[str, Any]:
    kept = {
        name: value
        for name, value in plain(section).items()
        if name not in _WITHOUT_EFFECT and (name not in _CAME_LATER or value != _CAME_LATER[name])
    }
    health = section.health.effective() if isinstance(section, PPOConfig) else {}
    return kept | dict.fromkeys(_DEMANDS & kept.keys()) | ({"health": health} if health else {})


def _base_hash(model_path: str, hashes: FileHashes) -> str:
    if is_local(model_path) and not Path(model_path).exists():
        raise missing_path(model_path, "model.path")
    return hashes.base(model_path)


def _data_hash(role: str, path: Path, hashes: FileHashes) -> str:
    if not path.is_file():
        raise missing_path(path, f"data.{role}")
    return hashes.file(path)


def _base_files(model_path: str, hashes: FileHashes) -> dict[str, str]:
    """Digest of each file of a base model, so that a changed tokenizer does not look like changed weights."""
    path = Path(model_path)
    if path.is_dir():
        return {f"base/{name}": hashes.file(file) for name, file in model_files(path).items()}
    return {f"base/{path.name}": hashes.base(model_path)}


def _template(config: PipelineConfig, data: Mapping[str, Path]) -> Any:
    """How labelled rows become demonstrations, for any stage that reads them; nothing without sft.classification."""
    classification = config.sft.classification
    reads = any(role.startswith("demonstrations") for role in data)
    return plain(classification) if classification and reads else None


def _reward(config: PipelineConfig, hashes: FileHashes) -> dict[str, Any]:
    """The reward terms and the judge with the content of the files they name."""
    fields: dict[str, Any] = {}
    for index, term in enumerate(config.reward):
        fields |= dict(flat(f"reward[{index}]", _without_manners(plain(term))))
        for number, named in enumerate(term.models or [term.function]):
            if content := _content(named, hashes):
                fields[f"reward[{index}].content{f'[{number}]' if number else ''}"] = content
    judge = _content(config.evaluation.judge, hashes)
    return fields | ({"evaluation.judge.content": judge} if judge else {})


def _without_manners(term: dict[str, Any]) -> dict[str, Any]:
    """A term without how its server is reached, which may change while a run is interrupted."""
    remote = term.get("remote")
    asked = {key: value for key, value in remote.items() if key not in WITHOUT_EFFECT} if remote else None
    return {key: value for key, value in term.items() if key != "remote"} | ({"remote": asked} if asked else {})


def _content(spec: str | None, hashes: FileHashes) -> str | None:
    """Digest of the file or folder that a term names; None for an installed module."""
    if not spec:
        return None
    path = Path(spec.rpartition(":")[0] if ".py:" in spec else spec)
    if path.is_dir():
        return hashes.folder(path)
    return hashes.file(path) if path.is_file() else None
