"""From our config to DeepSpeed's: what `deepspeed.initialize` and transformers' Trainer are given. Imports no torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.batch_split import BatchSplit
from stages.deepspeed_config import DeepSpeedConfig
from stages.deepspeed_keys import AUTO, MUST_BE, OWNED


def deepspeed_json(config: DeepSpeedConfig | None, split: BatchSplit, max_grad_norm: float) -> dict[str, Any]:
    """DeepSpeed's config of a trained model whose optimizer is AdamW of torch.

    It names no precision: trained weights and their optimizer state are float32, and products in bfloat16 are
    autocast's. Without a section, ZeRO stage 0.
    """
    given = _from_file(config.file) if config and config.file else {"zero_optimization": _zero(config)}
    return given | {
        "train_batch_size": split.batch,
        "train_micro_batch_size_per_gpu": split.microbatch,
        "gradient_accumulation_steps": split.accumulation,
        "gradient_clipping": max_grad_norm,
        **MUST_BE,
    }


def zero_stage(config: DeepSpeedConfig | None) -> int:
    """The ZeRO stage that a section asks for, be it in a file of the user's; 0 without one."""
    if config is None or config.file is None:
        return 0 if config is None else config.zero_stage
    return _from_file(config.file)["zero_optimization"].get("stage", 0)


def _zero(config: DeepSpeedConfig | None) -> dict[str, Any]:
    config = config or DeepSpeedConfig()
    section: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload_optimizer:
        section["offload_optimizer"] = {"device": "cpu"}
    if config.offload_parameters:
        section["offload_param"] = {"device": "cpu"}
    return section


def _from_file(path: str) -> dict[str, Any]:
    """A file that pipeline.deepspeed_file has checked; what it leaves to us is left out, so that defaults hold."""
    content = _without_auto(json.loads(Path(path).read_text(encoding="utf-8")))
    return {"zero_optimization": {"stage": 0}} | {k: v for k, v in content.items() if k not in OWNED}


def _without_auto(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _without_auto(item) for key, item in value.items() if item != AUTO}
