"""What a stage is made from: data and parents, whether they fit and are unchanged. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.config import STAGES, PipelineConfig, SplitConfig
from pipeline.config_loading import plain
from pipeline.hashing import FileHashes, sha256_of
from pipeline.model_files import require_safe_models
from pipeline.parents import check_fit, check_policy, is_local, parents_of
from pipeline.problems import missing_path
from pipeline.rundir import RunDir, StageDir
from reward.settings import Settings
from stages.base import InputError

# Keys of a stage's section that decide when it runs or what it keeps, not what comes out.
_WITHOUT_EFFECT = {"enabled", "checkpoint_every", "keep_checkpoints"}

Decision = Literal["skip", "resume", "new"]


@dataclass(frozen=True)
class StageInputs:
    """All that determines the result of a stage."""

    data: Mapping[str, Path]
    """JSONL files by role, such as `prompts.train`."""
    parents: Mapping[str, Path]
    """`final/` folders of this run by stage."""
    fingerprint: str
    """Digest of everything that determines the result."""
    record: Mapping[str, Any]
    """The same in readable form, for stage.json."""


def inputs_of(run: RunDir, config: PipelineConfig, stage: str) -> StageInputs:
    """Collect a stage's inputs and refuse parents that do not fit.

    Raises:
        InputError: SAFE01 to SAFE05 as in pipeline.model_files, STAGE01 to STAGE05 as in pipeline.parents,
            STAGE08 parent not finished, PATH01 no such file, CONF08 no data named.
    """
    hashes = run.hashes()
    require_safe_models(config)
    check_policy(config.model.path)
    path = (stage == "reward_model" and config.reward_model.path) or config.model.path
    base = {"id": path, "hash": _base_hash(path, hashes)}
    data = data_of(config, stage)
    data_hashes = {role: _data_hash(role, path, hashes) for role, path in data.items()}
    parents = parents_of(run, config, stage)
    check_fit(parents, base, config)
    section = getattr(config, stage)
    finals = {name: folder.manifest["final_hash"] for name, folder in parents.items()}
    fingerprint = sha256_of(
        {
            "stage": stage,
            "section": _effective(section),
            "sampling": _effective(config.ppo) if stage == "evaluation" else None,
            "model": {k: v for k, v in plain(config.model).items() if k != "path"},
            "trunk": plain(config.trunk),
            "seed": config.seed,
            "base": base["hash"],
            "data": data_hashes,
            **_template(config, data),
            "parents": finals,
            "reward": _reward(config, hashes) if stage in ("ppo", "evaluation") else None,
        }
    )
    record = {
        "parents": {n: {"path": str(f.final), "final_hash": finals[n]} for n, f in parents.items()},
        "base": base,
        "config": plain(section),
        "config_hash": sha256_of(plain(section)),
        "data": {str(data[role]): digest for role, digest in data_hashes.items()},
    }
    return StageInputs(data, {n: f.final for n, f in parents.items()}, fingerprint, record)


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
    if stage == "reward_model":  # its scores are centred on demonstrations, held-out ones where there are any
        shown = _split("demonstrations", config.data.demonstrations, ("eval", "train"))
        files |= dict(list(shown.items())[:1])
    return files


def enabled_steps(config: PipelineConfig) -> list[str]:
    """The stages of a run in their order, then the evaluation when there are held-out prompts for it."""
    stages = [stage for stage in STAGES if getattr(config, stage).enabled]
    return [*stages, "evaluation"] if config.data.prompts and config.data.prompts.eval else stages


def decide(folder: StageDir, fingerprint: str, force: bool = False) -> Decision:
    """skip what is finished and unchanged, resume what was interrupted unchanged, else start anew."""
    manifest = folder.manifest
    if force or manifest.get("fingerprint") != fingerprint:
        return "new"
    return "skip" if manifest["status"] == "finished" else "resume"


def _split(role: str, split: SplitConfig | None, parts: tuple[str, ...]) -> dict[str, Path]:
    paths = {part: getattr(split, part) for part in parts} if split else {}
    return {f"{role}.{part}": Path(path) for part, path in paths.items() if path}


def _effective(section: Settings) -> dict[str, Any]:
    return {name: value for name, value in plain(section).items() if name not in _WITHOUT_EFFECT}


def _base_hash(model_path: str, hashes: FileHashes) -> str:
    if is_local(model_path) and not Path(model_path).exists():
        raise missing_path(model_path, "model.path")
    return hashes.base(model_path)


def _data_hash(role: str, path: Path, hashes: FileHashes) -> str:
    if not path.is_file():
        raise missing_path(path, f"data.{role}")
    return hashes.file(path)


def _template(config: PipelineConfig, data: Mapping[str, Path]) -> dict[str, Any]:
    """How labelled rows become demonstrations, for any stage that reads them; nothing without sft.classification."""
    classification = config.sft.classification
    reads = any(role.startswith("demonstrations") for role in data)
    return {"classification": plain(classification)} if classification and reads else {}


def _reward(config: PipelineConfig, hashes: FileHashes) -> list[Any]:
    """The reward terms and the judge with the content of the files they name."""
    named = [(plain(term), term.model, term.function) for term in config.reward]
    content = [[term, _content(model, hashes), _content(function, hashes)] for term, model, function in named]
    return [*content, _content(config.evaluation.judge, hashes)]


def _content(spec: str | None, hashes: FileHashes) -> str | None:
    """Digest of the file or folder that a term names; None for an installed module."""
    if not spec:
        return None
    path = Path(spec.rpartition(":")[0] if ".py:" in spec else spec)
    if path.is_dir():
        return hashes.folder(path)
    return hashes.file(path) if path.is_file() else None
