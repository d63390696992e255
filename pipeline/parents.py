"""Which models a stage builds on, and whether they fit. Imports no torch."""

import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.config import PipelineConfig
from pipeline.hashing import FileHashes
from pipeline.launch import continue_command, printable
from pipeline.problems import missing_path
from pipeline.rundir import RunDir, StageDir, read_json
from reward.config import OWN
from stages.base import InputError
from stages.models.classifier_facts import is_foreign, label_of, require_head
from stages.models.hub import cached_folder, is_hub_id
from stages.models.weight_files import tensors_in
from stages.reward_model.members import folders_of


def needs_reward_model(config: PipelineConfig) -> bool:
    """Whether a reward term is the reward model of this run."""
    return any(OWN in term.models for term in config.reward)


def other_reward_models(config: PipelineConfig) -> list[str]:
    """The reward models that terms name beside that of this run, each once."""
    return list(dict.fromkeys(model for term in config.reward for model in term.models if model != OWN))


def foreign_reward_models(config: PipelineConfig) -> list[str]:
    """Those of them that no stage here made: classifiers of others."""
    return [model for model in other_reward_models(config) if is_foreign(model)]


def parents_of(run: RunDir, config: PipelineConfig, stage: str) -> dict[str, StageDir]:
    """Folders of the finished stages that `stage` builds on."""
    wanted: list[str] = []
    alone = stage == "reward_model" and config.reward_model.path
    if stage != "sft" and config.sft.enabled and not alone:
        wanted.append("sft")
    if stage in ("ppo", "evaluation") and needs_reward_model(config):
        wanted.append("reward_model")
    if stage == "evaluation" and config.ppo.enabled and run.stage("ppo").finished:
        wanted.append("ppo")
    for name in wanted:
        _require_finished(run, name, stage)
    if "reward_model" in wanted:
        require_accuracy(run, config)
    return {name: run.stage(name) for name in wanted}


def require_accuracy(run: RunDir, config: PipelineConfig) -> None:
    """Refuse a reward model that is worse on held-out pairs than the config demands.

    Raises:
        InputError: RM06 its accuracy is below `reward_model.minimum_accuracy`.
    """
    folder, wanted = run.stage("reward_model"), config.reward_model.minimum_accuracy
    found = folder.manifest.get("headline", {}).get("accuracy")
    if wanted is not None and found is not None and found < wanted:
        problem = (
            f"{folder.path}: held-out accuracy {found:.3f} is below reward_model.minimum_accuracy {wanted:g}, "
            "so PPO does not start; the reward model and its report.json are kept"
        )
        raise InputError("RM06", problem, fix="more or cleaner preferences, more steps, or a lower demand")


def _require_finished(run: RunDir, name: str, child: str) -> None:
    manifest = run.stage(name).manifest
    if manifest.get("stage", name) != name:
        found = f"{run.stage(name).path} holds a '{manifest['stage']}' stage, {child} needs '{name}'"
        code = "STAGE01" if name == "reward_model" else "STAGE02"
        raise InputError(code, found, fix=f"make it: {_again(run.path, name)}")
    if manifest.get("status") != "finished":
        status = manifest.get("status", "not started")
        problem = f"{child} needs stage {name} of {run.path}; found it {status}, expected finished"
        raise InputError("STAGE08", problem, fix=f"make it: {_again(run.path, name)}")


def _again(run_path: Path, stage: str) -> str:
    return printable(continue_command(run_path / "config.yaml", stage))


def check_fit(parents: Mapping[str, StageDir], base: Mapping[str, str], config: PipelineConfig) -> None:
    """Refuse parents that do not share one base, one tokenizer and one chat template.

    A reward model from another run, or with a base of its own, may differ: it then reads decoded texts in its own way.

    Raises:
        InputError: STAGE05 other base, STAGE03 other tokenizer, STAGE04 other template,
            STAGE01 no reward model.
    """
    expected = {"base": (config.model.path, base["hash"])}
    for term in config.reward:
        for model in (model for model in term.models if model != OWN):
            check_reward_path(model, term.label_index)
    for name, folder in parents.items():
        if name == "reward_model" and config.reward_model.path:
            continue
        manifest = folder.manifest
        found = {
            "base": manifest["base"]["hash"],
            "tokenizer": manifest.get("tokenizer_hash"),
            "template": manifest.get("template_hash"),
        }
        for what, digest in found.items():
            _compare(what, folder.final, digest, *expected.setdefault(what, (str(folder.final), digest)))


def _compare(what: str, folder: Path, found: str | None, other: str, expected: str | None) -> None:
    if found != expected:
        digests = f"found {_short(found)}, expected {_short(expected)}"
        problem = f"{folder} was made with another {what} than {other}; {digests}"
        if what == "template":
            problem += _where_templates_part(folder, Path(other))
        code = {"base": "STAGE05", "tokenizer": "STAGE03", "template": "STAGE04"}[what]
        raise InputError(code, problem, fix=f"train it again with the {what} of {other}")


def _where_templates_part(found: Path, expected: Path) -> str:
    if not all((folder / "tokenizer_config.json").is_file() for folder in (found, expected)):
        return ""
    from pipeline.texts.difference import first_difference  # torch and transformers

    return first_difference(found, expected)


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "none"


def verify_unchanged(parents: Mapping[str, Path]) -> None:
    """Read the parents' files again and compare with what their stages recorded.

    Raises:
        InputError: STAGE06 a file differs.
    """
    for stage, final in parents.items():
        if FileHashes().folder(final) != StageDir(final.parent).manifest["final_hash"]:
            problem = f"{final}: files differ from those that stage {stage} wrote"
            fix = f"make them again: {_again(final.parent.parent, stage)} --force {stage}"
            raise InputError("STAGE06", problem, fix=fix)


def is_local(model_path: str) -> bool:
    """Whether a model path can only mean a file or folder: hub ids have at most one slash."""
    return model_path.startswith((".", "/", "~")) or model_path.endswith(".gguf") or model_path.count("/") > 1


def check_policy(model_path: str) -> None:
    """Refuse what is no causal language model as the model to be tuned.

    Raises:
        InputError: STAGE02 model.path is a reward model, or of a kind that does not generate text.
    """
    kind = _kind(Path(model_path))
    if kind == "reward_model":
        problem = f"model.path {model_path} is a reward model (score head, no language-model head)"
        raise InputError("STAGE02", problem, fix="set model.path to a causal language model")
    if kind is not None and kind.startswith("other"):
        problem = f"model.path {model_path} is {kind.partition(' ')[2]}, which does not generate text"
        raise InputError("STAGE02", problem, fix="set model.path to a causal language model")


def check_reward_path(path: str, label_index: int | None = None) -> None:
    """Refuse what is neither a reward model of this program nor a sequence classifier as a reward term.

    A model of the hub is looked at if it was downloaded before.

    Raises:
        InputError: STAGE01 another kind of model, RM01 several values per text, RM07 no such value, RM04 no head in its
            weights, PATH01 no such folder.
    """
    folder = Path(cached_folder(path) or path)
    if not folder.is_dir():
        if is_local(path) or not is_hub_id(path) or _offline():
            raise missing_path(path, "reward model")
        return
    kind = _kind(folder)
    fix = "set it to `reward_model`, to the final/ folder of that stage, or to a sequence classifier"
    if kind not in (None, "reward_model"):
        problem = f"reward model {path} is a model of kind '{kind}'; found no score head, expected a reward model"
        raise InputError("STAGE01", problem, fix=fix)
    if not is_foreign(path):
        for member in folders_of(folder):
            _check_own(member, label_index, fix)
    elif _made_here(folder):
        problem = f"reward model {path} has no reward_model.json (centring and probes), so its stage did not finish"
        raise InputError("STAGE01", problem, fix=fix)
    else:
        require_head(path)
        label_of(path, label_index)


def _check_own(folder: Path, label_index: int | None, fix: str) -> None:
    if label_index:
        problem = f"reward model {folder} has one value per text, and label_index is {label_index}"
        raise InputError("RM07", problem, fix="remove label_index")
    names = tensors_in(folder)
    if names and not any("score." in name for name in names):
        raise InputError("RM04", f"reward model {folder} has no score head among its {len(names)} tensors", fix=fix)


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _made_here(folder: Path) -> bool:
    return folder.name == "final" and (folder.parent / "stage.json").is_file()


def _kind(folder: Path) -> str | None:
    """Stage that wrote a final/ folder, else what the config of a foreign model or adapter says."""
    stage = read_json(folder.parent / "stage.json").get("stage") if folder.name == "final" else None
    if stage:
        return stage
    task = read_json(folder / "adapter_config.json").get("task_type")
    if task:
        return {"SEQ_CLS": "reward_model", "CAUSAL_LM": "causal_lm"}.get(task, f"other an adapter for {task}")
    architecture = (read_json(folder / "config.json").get("architectures") or [""])[0]
    if architecture.endswith("ForSequenceClassification"):
        return "reward_model"
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal_lm"
    return f"other a {architecture}" if architecture.endswith(_NO_WRITERS) else None


_NO_WRITERS = ("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering", "ForPreTraining", "EncoderModel")
