"""Adapters: made from a tuning section, or continued from the stage before."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from transformers import PreTrainedModel

from stages.base import InputError
from stages.models.config import TuningConfig
from stages.models.trunk import decoder_layers

QUERY_AND_VALUE = (("q_proj", "v_proj"), ("query_key_value",), ("c_attn",), ("query", "value"), ("qkv_proj",))


def peft_config(tuning: TuningConfig, model: PreTrainedModel, task: TaskType) -> LoraConfig:
    """The PEFT configuration of a tuning section for this architecture.

    Raises InputError TUNE01 when the architecture has no known query and value projections, TUNE02 when it has
    fewer layers than top_layers.
    """
    layers = len(decoder_layers(model))
    if tuning.top_layers is not None and tuning.top_layers > layers:
        raise InputError(
            "TUNE02",
            f"tuning.top_layers is {tuning.top_layers}, the model has {layers} layers",
            fix=f"top_layers <= {layers}",
        )
    chosen = None if tuning.top_layers is None else list(range(layers - tuning.top_layers, layers))
    return LoraConfig(
        task_type=task,
        r=tuning.r,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=_targets(tuning, model),
        layers_to_transform=chosen,
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in model.modules()),
        modules_to_save=["score"] if task is TaskType.SEQ_CLS else None,
    )


def _targets(tuning: TuningConfig, model: PreTrainedModel) -> list[str]:
    names = {name.rpartition(".")[2] for name, _ in decoder_layers(model).named_modules() if name}
    linear = {
        name.rpartition(".")[2]
        for name, module in decoder_layers(model).named_modules()
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
    }
    if tuning.targets == "all-linear":
        return sorted(linear)
    if tuning.targets == "auto":
        for candidates in QUERY_AND_VALUE:
            if set(candidates) <= names:
                return list(candidates)
        raise InputError(
            "TUNE01",
            f"no query and value projections known for {type(model).__name__}",
            fix=f"set tuning.targets to some of {sorted(linear)}",
        )
    return tuning.targets


def attach_adapter(model: PreTrainedModel, tuning: TuningConfig, task: TaskType, start: Path | None) -> PeftModel:
    """Wrap a frozen model with a trainable float32 adapter: new, or continuing a copy of the one at `start`."""
    peft_model = get_peft_model(model, peft_config(tuning, model, task))
    if start is not None:
        load_adapter_weights(peft_model, start)
    return peft_model


def load_adapter_weights(model: PeftModel, folder: Path) -> None:
    """Copy an adapter's tensors into `model`; a head that only one of the two has stays as it is.

    Raises InputError PEFT02 when the folder lacks a tensor of the adapter.
    """
    own = get_peft_model_state_dict(model)
    found = load_peft_weights(str(folder), device="cpu")
    missing = [name for name in own if "lora_" in name and name not in found]
    if missing or not found:
        raise InputError(
            "PEFT02",
            f"{folder} holds {len(found)} tensors and lacks {len(missing)} of the adapter, such as {missing[:1]}",
            fix="train that stage again",
        )
    set_peft_model_state_dict(model, own | {name: tensor for name, tensor in found.items() if name in own})


def same_shape(tuning: TuningConfig, model: PreTrainedModel, folder: Path) -> bool:
    """Whether the adapter at `folder` has the shape that `tuning` asks for, so that a stage can continue it."""
    wanted, found = peft_config(tuning, model, TaskType.CAUSAL_LM), LoraConfig.from_pretrained(str(folder))
    keys = ("r", "lora_alpha", "layers_to_transform")
    return set(wanted.target_modules) == set(found.target_modules) and all(
        getattr(wanted, k) == getattr(found, k) for k in keys
    )


def load_frozen_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with the adapter at `folder`, nothing trainable."""
    return PeftModel.from_pretrained(model, str(folder), is_trainable=False)
