"""Fine-tuning methods as PEFT configurations: ours by their section, any other PEFT type by its name."""

import dataclasses
import difflib
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, TaskType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import PreTrainedModel

from stages.base import InputError
from stages.models.bottleneck import BottleneckConfig
from stages.models.config import KEYS, TuningConfig
from stages.models.trunk import decoder_layers

QUERY_AND_VALUE = (("q_proj", "v_proj"), ("query_key_value",), ("c_attn",), ("query", "value"), ("qkv_proj",))
_UNSUPPORTED = {"adaption_prompt", "cpt", "mixed", "multitask_prompt_tuning", "poly", "trainable_tokens", "xlora"}
"""Types that need inputs, mixtures or a vocabulary which no stage of this chain has."""


def peft_config(
    tuning: TuningConfig, model: PreTrainedModel, task: TaskType, frozen_layers: int = 0, tokenizer: str | None = None
) -> PeftConfig:
    """The PEFT configuration of a tuning section for this architecture; no adapter in the first `frozen_layers`.

    `tokenizer` is the folder of the tokenizer that encodes `init_text`.

    Raises InputError TUNE01 (no known query and value projections), TUNE02 (fewer layers than frozen_layers),
    TUNE04 (the method cannot leave layers alone), TUNE05 (no such PEFT type or argument).
    """
    chosen = _layers_above(frozen_layers, model)
    hidden = model.config.get_text_config().hidden_size
    common = {"task_type": task}
    virtual = {**common, "num_virtual_tokens": tuning.virtual_tokens}
    encoder_size = tuning.encoder_size or hidden
    match tuning.method:
        case "lora":
            return _lora(tuning, model, task, chosen)
        case "adapter":
            return BottleneckConfig(
                **common,
                placement=tuning.placement,
                reduction=tuning.reduction,
                activation=tuning.activation,
                dropout=tuning.dropout,
                target_modules=None if tuning.targets == "auto" else _targets(tuning, model),
                layers_to_transform=chosen,
            )
        case "prefix_tuning":
            projection = {"prefix_projection": True, "encoder_hidden_size": encoder_size} if tuning.projection else {}
            return PrefixTuningConfig(**virtual, **projection)
        case "prompt_tuning":
            init = "TEXT" if tuning.init_text else {"vocabulary": "SAMPLE_VOCAB", "random": "RANDOM"}[tuning.init]
            text = {"prompt_tuning_init_text": tuning.init_text, "tokenizer_name_or_path": tokenizer}
            return PromptTuningConfig(**virtual, prompt_tuning_init=init, **(text if tuning.init_text else {}))
        case "p_tuning":
            kind = tuning.encoder.upper()
            return PromptEncoderConfig(
                **virtual, encoder_reparameterization_type=kind, encoder_hidden_size=encoder_size
            )
    return _by_name(tuning, task, chosen)


def _layers_above(frozen_layers: int, model: PreTrainedModel) -> list[int] | None:
    layers = len(decoder_layers(model))
    if frozen_layers >= layers:
        raise InputError(
            "TUNE02",
            f"trunk.frozen_layers is {frozen_layers}, the model has {layers} layers",
            fix=f"frozen_layers <= {layers - 1}",
        )
    return list(range(frozen_layers, layers)) if frozen_layers else None


def _lora(tuning: TuningConfig, model: PreTrainedModel, task: TaskType, layers: list[int] | None) -> LoraConfig:
    return LoraConfig(
        task_type=task,
        r=tuning.r,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        use_rslora=tuning.rslora,
        use_dora=tuning.dora,
        target_modules=_targets(tuning, model),
        layers_to_transform=layers,
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in model.modules()),
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


def check_peft_type(tuning: TuningConfig) -> None:
    """Raise InputError TUNE05 when a method is no PEFT type, or its arguments are not those of its config class."""
    if tuning.method in KEYS:
        return
    kinds = {t.value.lower(): kind for t, kind in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    known = sorted({*KEYS, *kinds} - _UNSUPPORTED - {"bottleneck"})
    if tuning.method not in known:
        near = difflib.get_close_matches(tuning.method, known, n=1)
        raise InputError(
            "TUNE05",
            f"no fine-tuning method '{tuning.method}'; found {', '.join(known)}",
            fix=f"did you mean '{near[0]}'?" if near else "name one of these",
        )
    fields = {f.name for f in dataclasses.fields(kinds[tuning.method])} - {"task_type", "peft_type", "inference_mode"}
    for argument in tuning.arguments:
        if argument not in fields:
            near = difflib.get_close_matches(argument, sorted(fields), n=1)
            raise InputError(
                "TUNE05",
                f"{kinds[tuning.method].__name__} has no argument '{argument}'; found {', '.join(sorted(fields))}",
                fix=f"did you mean '{near[0]}'?" if near else "name one of these",
            )


def _by_name(tuning: TuningConfig, task: TaskType, layers: list[int] | None) -> PeftConfig:
    check_peft_type(tuning)
    kind = next(k for t, k in PEFT_TYPE_TO_CONFIG_MAPPING.items() if t.value.lower() == tuning.method)
    arguments: dict[str, Any] = {"task_type": task} | tuning.arguments
    if layers is not None:
        if "layers_to_transform" not in {f.name for f in dataclasses.fields(kind)}:
            raise InputError(
                "TUNE04",
                f"method {tuning.method} cannot leave the first {layers[0]} layers alone",
                fix="trunk.frozen_layers: 0, or another method",
            )
        arguments["layers_to_transform"] = layers
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise InputError("TUNE05", f"{kind.__name__} refuses its arguments: {error}", fix="change arguments") from error
