"""A stage's model as a plain transformers folder: its adapter merged into the weights, opened again and compared."""

import json
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from stages.base import InputError
from stages.models.adapters import adapter_config, merge
from stages.models.config import ModelConfig
from stages.models.identity import BaseIdentity, require_same_base, weights_digest
from stages.models.load import ModelSource, load_causal_lm, load_tokenizer, source_of
from stages.models.precision import DTYPES
from stages.models.roles import Roles
from stages.models.scalar import load_classifier, with_scalar_head
from stages.quiet import quiet_libraries
from stages.reward_model.statistics import FILE as REWARD_FILE

PROBE = "a few words that every tokenizer can read, by which two models are compared."
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Largest difference of a logit or score; of bfloat16 storage, relative to the largest one."""


def export_merged(final: Path, out: Path, dtype: str = "float32", trust_remote_code: bool = False) -> None:
    """Write the model of a stage's `final/` to `out`, which transformers opens without PEFT. Merges in float32.

    `out` exists only once it is complete and says what the adapter's model says.

    Raises InputError EXP01 (`out` exists), EXP02 (the merged weights say something else), PEFT01 (adapter of another
    base), PEFT02 (incomplete adapter), PEFT03 (an adapter that cannot be merged).
    """
    if os.path.lexists(out):
        raise InputError("EXP01", f"{out} exists already", fix="give --merge another folder")
    quiet_libraries()
    source = source_of(final)
    tokenizer = load_tokenizer(source, trust_remote_code)
    ids = torch.tensor([tokenizer(PROBE, add_special_tokens=False).input_ids])
    expected = _says(_as_trained(source, trust_remote_code), ids)
    model = _merged(source, tokenizer, trust_remote_code)
    _compare(_says(model, ids), expected, "float32", out)  # before storage rounds, which could hide an unmerged adapter
    aside = out.absolute().with_name(f".{out.name}-{os.getpid()}")
    try:
        _write(model.to(DTYPES[dtype]), tokenizer, source, aside)
        del model
        gap = _compare(_says(_reopened(aside, trust_remote_code), ids), expected, dtype, out)
        os.rename(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    what = "score" if is_scorer(source) else "logit"
    print(f"wrote {out}: {size:.3g} MB, {_origin(source)}; largest difference of a {what} {gap:.1e}", flush=True)


def is_scorer(source: ModelSource) -> bool:
    """Whether a source gives one number per text, by what its adapter or its architecture says."""
    if source.adapter is not None:
        return json.loads((source.adapter / "adapter_config.json").read_text()).get("task_type") == "SEQ_CLS"
    file = Path(source.base) / "config.json"
    architectures = json.loads(file.read_text()).get("architectures") if file.is_file() else None
    return bool(architectures) and architectures[0].endswith("ForSequenceClassification")


def _as_trained(source: ModelSource, trust_remote_code: bool) -> nn.Module:
    """The float32 model of a source, its adapter beside the base."""
    roles = Roles(ModelConfig(path=source.base, trust_remote_code=trust_remote_code))
    return roles.reward_model(source) if is_scorer(source) else roles.reference(source)


def _merged(source: ModelSource, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool) -> PreTrainedModel:
    """Whole float32 weights of a source, a reward model's head included."""
    if not is_scorer(source):
        return Roles(ModelConfig(path=source.base, trust_remote_code=trust_remote_code)).merged(source)
    if source.adapter is None:
        return load_classifier(source.base, "float32", trust_remote_code)
    base = load_causal_lm(source.base, "float32", trust_remote_code)
    require_same_base(source.adapter, BaseIdentity(source.base, weights_digest(base)))
    return merge(with_scalar_head(base, tokenizer.pad_token_id), source.adapter)


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: ModelSource, folder: Path) -> None:
    """Weights, tokenizer with its template, and what the source says about sampling or about its scores."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    origin = Path(source.folder)
    if (origin / "generation_config.json").is_file() and not is_scorer(source):
        GenerationConfig.from_pretrained(origin).save_pretrained(folder)
    if (origin / REWARD_FILE).is_file():
        shutil.copy(origin / REWARD_FILE, folder)


def _reopened(folder: Path, trust_remote_code: bool) -> PreTrainedModel:
    """The folder as a user of plain transformers has it, computing in float32."""
    if is_scorer(ModelSource(str(folder))):
        return load_classifier(str(folder), "float32", trust_remote_code)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trust_remote_code).eval()


@torch.no_grad()
def _says(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits [1, S, V] or score [1, 1] of ids [1, S]."""
    return model(ids).logits.float()


def _compare(found: Tensor, expected: Tensor, dtype: str, out: Path) -> float:
    """The largest difference. Raises InputError EXP02 when it is too large, or not a number."""
    gap = float((found - expected).abs().max())
    limit = TOLERANCE[dtype] * (1.0 if dtype == "float32" else max(1.0, float(expected.abs().max())))
    if not gap <= limit:
        problem = f"{out} is not written: the whole weights are {gap:.2g} away from the adapter's (limit {limit:.2g})"
        raise InputError("EXP02", problem, fix="use the final/ folder as it is")
    return gap


def _origin(source: ModelSource) -> str:
    if source.adapter is None:
        return "whole weights"
    return f"merged from {adapter_config(source.adapter).peft_type.value}"
