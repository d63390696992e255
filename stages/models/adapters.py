"""Adapters of every PEFT type: made, continued, merged, and read back checked."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, PromptTuningInit, get_peft_model
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from stages.base import InputError
from stages.models.trusted import require_safe
from stages.models.virtual_tokens import CLASSES, has_virtual_tokens, is_head

_NOT_SHAPE = {
    *("task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version"),
    *("modules_to_save", "lora_dropout", "dropout", "init_lora_weights", "init_weights"),
    *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
}
"""What an adapter may differ in from one that continues it."""


def attach_adapter(model: PreTrainedModel, config: PeftConfig, start: Path | None = None) -> PeftModel:
    """Wrap a frozen model with a trainable float32 adapter: new, or continuing a copy of the one at `start`."""
    config.revision = getattr(model, "hub_revision", None)
    make = CLASSES[config.task_type] if config.is_prompt_learning else get_peft_model
    try:
        peft_model = make(model, config)
    except (TypeError, ValueError) as error:  # how PEFT says that a target is no module for this method
        raise InputError(
            "TUNE05", f"{config.peft_type.value} does not fit {type(model).__name__}: {error}", fix="change tuning"
        ) from error
    if config.peft_type == PeftType.PROMPT_TUNING:
        _forget_start(config)
    if start is not None:
        load_adapter_weights(peft_model, start)
    return peft_model


def adapter_config(folder: Path) -> PeftConfig:
    """What the adapter at `folder` is; it names no text or tokenizer to start at, since it has its weights.

    Raises InputError as `require_safe`.
    """
    require_safe(folder)
    config = PeftConfig.from_pretrained(str(folder))
    if config.peft_type == PeftType.PROMPT_TUNING:
        _forget_start(config)
    return config


def _forget_start(config: PeftConfig) -> None:
    """The first embeddings are made; on disk the tokenizer's path would only break when folders move."""
    config.prompt_tuning_init, config.prompt_tuning_init_text = PromptTuningInit.RANDOM, None
    config.tokenizer_name_or_path = None


def continue_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with a trainable copy of the adapter at `folder`. Raises InputError PEFT02 unless it is complete."""
    config = adapter_config(folder)
    config.inference_mode = False
    return attach_adapter(model, config, folder)


def same_shape(model: PreTrainedModel, wanted: PeftConfig, folder: Path) -> bool:
    """Whether a stage that wants this adapter on `model`, which is used up, can continue the one at `folder`."""
    found = adapter_config(folder)
    if type(found) is not type(wanted):
        return False
    with torch.random.fork_rng(devices=[]):  # asking must not change what is random later
        wanted = attach_adapter(model, wanted).active_peft_config  # PEFT has filled in modules and sizes by now
    names = {f.name for f in dataclasses.fields(wanted)} - _NOT_SHAPE
    return all(_agree(getattr(wanted, name), getattr(found, name)) for name in names)


def _agree(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, list | set | tuple) and isinstance(found, list | set | tuple):
        return set(wanted) == set(found)
    if isinstance(wanted, float) and isinstance(found, float):
        return math.isclose(wanted, found)
    return wanted == found


def load_frozen_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with the adapter at `folder`, nothing trainable. Raises InputError PEFT02 unless it is complete."""
    config = adapter_config(folder)
    config.inference_mode = True
    return attach_adapter(model, config, folder).requires_grad_(False).eval()


def merge(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with the adapter at `folder` added into its weights.

    Raises InputError PEFT03 when that is impossible.
    """
    config = adapter_config(folder)
    if config.is_prompt_learning:
        raise _unmergeable(folder, config, "virtual tokens are not weights")
    adapted = load_frozen_adapter(model, folder)
    try:
        return adapted.merge_and_unload()
    except ValueError as error:  # how PEFT's methods say so, before they change anything
        raise _unmergeable(folder, config, str(error)) from error


def _unmergeable(folder: Path, config: PeftConfig, reason: str) -> InputError:
    return InputError(
        "PEFT03",
        f"{folder}: a {config.peft_type.value} adapter cannot be merged into weights ({reason})",
        fix="use that folder as it is, with the same method, or train lora or full",
    )


def load_adapter_weights(model: PeftModel, folder: Path) -> None:
    """Copy an adapter's tensors into `model`; a head that only one of the two has stays as it is.

    Raises InputError PEFT02 unless the folder has just the tensors of the adapter, each in its shape.
    """
    own = get_peft_model_state_dict(model)
    found = load_peft_weights(str(folder), device="cpu")
    _require_same_tensors(folder, {k: v for k, v in own.items() if not is_head(k)}, found)
    if has_virtual_tokens(model) and model.has_encoder:
        model.load_encoder(folder)
    else:
        set_peft_model_state_dict(model, own | {k: v for k, v in found.items() if k in own})


def _require_same_tensors(folder: Path, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    wrong = [k for k, v in expected.items() if k not in found or found[k].shape != v.shape]
    surplus = [k for k in found if k not in expected and not is_head(k)]
    if wrong or surplus or not found:
        what = f"lacks or misshapes {len(wrong)} of the adapter's {len(expected)} tensors, such as {wrong[:1]}"
        what = what if wrong or not surplus else f"holds {len(surplus)} unknown tensors, such as {surplus[:1]}"
        raise InputError("PEFT02", f"{folder}: adapter_model.safetensors {what}", fix="train that stage again")


def verify_saved(model: PeftModel, folder: Path) -> None:
    """Reopen a saved adapter: every tensor there, in its shape, finite, and not every up-projection still at zero.

    Raises InputError PEFT02 when it is not what was saved, or learned nothing.
    """
    found = load_peft_weights(str(folder), device="cpu")
    _require_same_tensors(folder, get_peft_model_state_dict(model), found)
    broken = [k for k, v in found.items() if not v.isfinite().all()]
    up_projections = [v for k, v in found.items() if "lora_B" in k or "bottleneck_up" in k]
    untrained = bool(up_projections) and not any(v.any() for v in up_projections)
    if broken or untrained:
        what = f"{broken[:1]} is not finite" if broken else "every up-projection is still zero after training"
        raise InputError("PEFT02", f"{folder}: {what}", fix="lower the learning rate, or check what was trained")


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """How many parameters are trained, and how many there are; each tensor counted once."""
    tensors = {id(p): p for p in model.parameters()}.values()
    trained = sum(_size(p) for p in tensors if p.requires_grad)
    return {"trainable_parameters": trained, "parameters": sum(_size(p) for p in tensors)}


def announce_parameters(stage: str, model: nn.Module) -> dict[str, int]:
    """Print what share of a model a stage trains; the counts, for the stage's manifest."""
    counts = parameter_counts(model)
    trained, total = counts.values()
    print(f"{stage}: trains {trained:,} of {total:,} parameters ({trained / total:.2%})", flush=True)
    return counts


def _size(parameter: nn.Parameter) -> int:
    """Its elements on all ranks together, also where ZeRO 3 has left a part here."""
    return getattr(parameter, "ds_numel", parameter.numel())
