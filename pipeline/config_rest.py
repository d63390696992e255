"""What is left of a config when its mistakes are taken out. Imports no torch."""

import copy
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from pipeline.config import STAGES, PipelineConfig
from pipeline.strict_yaml import KeyPath

_STAND_INS = {"run": {"name": "unnamed"}, "model": {"path": "."}}
"""For sections without defaults, when they are mistaken or missing."""
_JUDGED_TOGETHER: tuple[KeyPath, ...] = (
    *((stage, "tuning") for stage in STAGES),
    *(("trunk",), ("model", "dtype"), ("model", "quantization"), ("sft", "packing"), ("ppo", "ptx_coef")),
)
"""What may be mistaken when the config as a whole is refused."""


def without(values: Any, removed: Sequence[KeyPath], path: KeyPath = ()) -> Any:
    """Plain values without some keys and list items."""
    if isinstance(values, dict):
        kept = {k: v for k, v in values.items() if (*path, k) not in removed}
        return {k: without(v, removed, (*path, k)) for k, v in kept.items()}
    if isinstance(values, list):
        return [without(v, removed, (*path, i)) for i, v in enumerate(values) if (*path, i) not in removed]
    return values


def rest_of(values: dict[str, Any], mistaken: Sequence[KeyPath], missing: Sequence[KeyPath]) -> PipelineConfig | None:
    """The config without mistaken keys, and without sections that lack a key; None where that is no config."""
    removed = [path for path in mistaken if path] + [path[:-1] for path in missing]
    removed += _JUDGED_TOGETHER if () in mistaken else ()
    rest = without(values, removed)
    for section, stand_in in _STAND_INS.items():
        rest[section] = {**copy.deepcopy(stand_in), **(rest.get(section) or {})}
    try:
        return PipelineConfig.model_validate(rest)
    except ValidationError:
        return None
