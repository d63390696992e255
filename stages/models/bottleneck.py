"""Bottleneck adapters as a PEFT method: a small network in series with the output of a sublayer.

Houlsby (arXiv 1902.00751): after attention and after the feed-forward; Pfeiffer (arXiv 2005.00247): after the
feed-forward only. `h + up(activation(down(h)))` replaces the sublayer's output h before the residual sum; `up`
starts at zero, so a new adapter changes nothing. PEFT knows the method, also to load it, once this module is imported.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import Tensor, nn
from transformers.activations import ACT2FN

from stages.base import InputError

NAME = "bottleneck"
DEFAULT_REDUCTION = {"houlsby": 8, "pfeiffer": 4}
ACTIVATIONS = ("relu", "gelu", "silu", "tanh")
_GATED = ("self_attn.o_proj", "mlp.down_proj")
SUBLAYER_OUTPUTS = {
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED,
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
}
"""By model type: the last projections of attention and of the feed-forward."""


def _peft_type() -> PeftType:
    """PEFT's own member for this method, made at the first call.

    PEFT names every method by a member of an Enum and maps members to classes; it has no other way in. An Enum with
    members cannot be subclassed, and a new one would not be the object that PEFT's modules hold, so the member is
    added to theirs. It is an ordinary one: found by name, by value and in iteration; copied and pickled as itself.
    """
    name = NAME.upper()
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        member.__objclass__, member._sort_order_ = PeftType, len(PeftType)
        setattr(PeftType, name, member)
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
        getattr(PeftType, "_hashable_values_", []).append(name)  # Python 3.13 looks here for `in`
    return PeftType(name)


@dataclass
class BottleneckConfig(PeftConfig):
    """Where the adapters are and how wide; saved as adapter_config.json. Raises ValueError for what has no meaning."""

    placement: str = "houlsby"
    """houlsby or pfeiffer."""
    reduction: int | None = None
    """Hidden size / bottleneck width; None = 8 (houlsby) or 4 (pfeiffer), filled in."""
    activation: str = "relu"
    """relu, gelu, silu or tanh."""
    dropout: float = 0.0
    """Probability, on the bottleneck's activations."""
    target_modules: list[str] | set[str] | str | None = None
    """Modules whose output is adapted (names or a regular expression); None = by architecture and placement."""
    exclude_modules: list[str] | set[str] | str | None = None
    """Modules that are not, though they match."""
    layers_to_transform: list[int] | int | None = None
    """Indices of the layers that have adapters; None = all."""
    layers_pattern: list[str] | str | None = None
    """Name of the list of layers; None = the first numbered part of a module's name is its layer."""
    modules_to_save: list[str] | None = None
    """Modules, such as a head, that are trained and saved whole."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = _peft_type()
        if self.placement not in DEFAULT_REDUCTION:
            raise ValueError(f"placement is '{self.placement}', must be houlsby or pfeiffer")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is '{self.activation}', must be one of {', '.join(ACTIVATIONS)}")
        if self.reduction is None:
            self.reduction = DEFAULT_REDUCTION[self.placement]
        if self.reduction < 1:
            raise ValueError(f"reduction is {self.reduction}, must be >= 1")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError("layers_to_transform needs names in target_modules, not a regular expression")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern needs layers_to_transform")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A projection followed by its named adapters, of which the active ones act one after another."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_dropout", "bottleneck_activation")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig):
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.bottleneck_dropout, self.bottleneck_activation = nn.ModuleDict(), nn.ModuleDict()
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add a named adapter that changes nothing yet; its weights are float32 whatever the base's are."""
        base = self.get_base_layer()
        hidden = base.nf if hasattr(base, "nf") else base.out_features  # Conv1D of GPT-2 has nf
        width = max(1, hidden // config.reduction)
        where = {"device": self.weight.device, "dtype": torch.float32}
        down, up = nn.Linear(hidden, width, **where), nn.Linear(width, hidden, **where)
        nn.init.normal_(down.weight, std=0.02)
        for parameter in (down.bias, up.weight, up.bias):
            nn.init.zeros_(parameter)
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = down, up
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.bottleneck_activation[adapter_name] = ACT2FN[config.activation]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The projection's output [..., H], adapted, in its own type."""
        hidden = self.base_layer(*args, **kwargs)
        if self.disable_adapters:
            return hidden
        for name in self.active_adapters:
            if name in self.bottleneck_up:
                hidden = hidden + self._update(name, hidden).to(hidden.dtype)
        return hidden

    def _update(self, name: str, hidden: Tensor) -> Tensor:
        down, up = self.bottleneck_down[name], self.bottleneck_up[name]
        inside = self.bottleneck_activation[name](down(hidden.to(down.weight.dtype)))
        return up(self.bottleneck_dropout[name](inside))


class BottleneckModel(BaseTuner):
    """Puts the adapters into a model."""

    prefix = f"{NAME}_"
    tuner_layer_cls = BottleneckLayer

    def _prepare_adapter_config(self, peft_config: BottleneckConfig, model_config: dict) -> BottleneckConfig:
        """Fill in the modules. Raises InputError TUNE03 for an architecture whose sublayers are not known."""
        if peft_config.target_modules is not None:
            return peft_config
        kind = model_config.get("model_type")
        if kind not in SUBLAYER_OUTPUTS:
            raise InputError(
                "TUNE03",
                f"method adapter does not know the sublayers of architecture '{kind}', only those of "
                f"{', '.join(sorted(SUBLAYER_OUTPUTS))}",
                fix="set tuning.targets to the last projections of attention and feed-forward",
            )
        attention, feed_forward = SUBLAYER_OUTPUTS[kind]
        both = peft_config.placement == "houlsby"
        peft_config.target_modules = {attention, feed_forward} if both else {feed_forward}
        return peft_config

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        """Adapt one module. What is active and what is trainable, BaseTuner settles when all are in place."""
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
        elif hasattr(target, "out_features") or hasattr(target, "nf"):
            self._replace_module(parent, target_name, BottleneckLayer(target, adapter_name, peft_config), target)
        else:
            raise ValueError(f"{current_key} is a {type(target).__name__}, not a projection")

    def _check_merge_allowed(self) -> None:
        """Every way to merge asks here first, before it has changed anything. Raises ValueError, as PEFT defines."""
        raise ValueError("a bottleneck adapter is not linear, so no weights can take it in")


if _peft_type() not in PEFT_TYPE_TO_TUNER_MAPPING:
    register_peft_method(name=NAME, config_cls=BottleneckConfig, model_cls=BottleneckModel)
