"""What a user says about a model and about how a stage tunes it. Imports no torch."""

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from reward.settings import Settings


class ModelConfig(Settings):
    path: str
    """Hub id, perhaps with `@revision`, folder, or GGUF file of the base model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage type of frozen weights; trained weights are always float32."""
    compute: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of matrix products (autocast); log-probabilities, values and losses stay float32. float16, for
    accelerators without bfloat16, trains with a dynamic loss scale."""
    quantization: Literal["none", "4bit"] = "none"
    """4bit: frozen weights as NF4 (arXiv 2305.14314) by bitsandbytes, where it supports the machine."""
    trust_remote_code: bool = False
    """Run Python code shipped with the model at `path`, and no other. Off unless you have read that code."""

    @model_validator(mode="after")
    def _one_precision(self) -> "ModelConfig":
        if self.dtype == "bfloat16" and self.compute == "float32":
            raise ValueError("dtype: bfloat16 needs compute: bfloat16 or float16")
        return self


class TrunkConfig(Settings):
    frozen_layers: int = Field(default=0, ge=0)
    """First layers (count) that no adapter touches in any stage; PPO computes them once per rollout for all roles."""


NO_FROZEN_LAYERS = TrunkConfig()


_LORA = {"r", "alpha", "dropout", "targets", "rslora", "dora"}
_VIRTUAL = {"virtual_tokens"}
KEYS: dict[str, set[str]] = {
    "full": set(),
    "lora": _LORA,
    "adapter": {"placement", "reduction", "activation", "dropout", "targets"},
    "prefix_tuning": _VIRTUAL | {"projection", "encoder_size", "init", "init_text"},
    "prompt_tuning": _VIRTUAL | {"init", "init_text"},
    "p_tuning": _VIRTUAL | {"encoder", "encoder_size"},
}
"""The keys that each method of our own table reads; any other PEFT type reads `arguments` alone."""
VIRTUAL_TOKEN_METHODS = ("prefix_tuning", "prompt_tuning", "p_tuning")
UNMERGEABLE = ("adapter", *VIRTUAL_TOKEN_METHODS)
_START_ONLY = {"dropout", "init", "init_text"}


class TuningConfig(Settings):
    method: str = "full"
    """full, lora, adapter, prefix_tuning, prompt_tuning, p_tuning, or any other PEFT type by its name."""
    r: int = Field(default=16, gt=0)
    """lora: rank of the update."""
    alpha: float = Field(default=32, gt=0)
    """lora: scale; the update is alpha / r * B A, with rslora alpha / sqrt(r) * B A."""
    rslora: bool = False
    """lora: scale by 1 / sqrt(r) (arXiv 2312.03732)."""
    dora: bool = False
    """lora: train magnitude and direction apart (arXiv 2402.09353)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """lora, adapter: dropout probability; only SFT may use it."""
    targets: list[str] | Literal["auto", "all-linear"] = "auto"
    """lora, adapter: adapted modules; auto = query and value projections (lora), ends of the sublayers (adapter)."""
    placement: Literal["houlsby", "pfeiffer"] = "houlsby"
    """adapter: after attention and feed-forward (arXiv 1902.00751), or after the feed-forward only (2005.00247)."""
    reduction: int | None = Field(default=None, gt=0)
    """adapter: hidden size / bottleneck width; null = 8 (houlsby) or 4 (pfeiffer), 2-4 % new parameters each."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """adapter: non-linearity of the bottleneck."""
    virtual_tokens: int = Field(default=20, gt=0)
    """prefix_tuning, prompt_tuning, p_tuning: tokens put before every sequence."""
    projection: bool = False
    """prefix_tuning: reparametrise the prefix by an MLP (arXiv 2101.00190, section 4.3)."""
    encoder: Literal["lstm", "mlp"] = "lstm"
    """p_tuning: network that makes the prompt (arXiv 2103.10385)."""
    encoder_size: int | None = Field(default=None, gt=0)
    """prefix_tuning with projection, p_tuning: hidden units of that network; null = hidden size of the model."""
    init: Literal["vocabulary", "random"] = "vocabulary"
    """prompt_tuning, prefix_tuning: start at what the model makes of random words, or at random numbers N(0, 1)."""
    init_text: str | None = None
    """prompt_tuning, prefix_tuning: start at this text, repeated or cut to virtual_tokens; null = as `init` says."""
    arguments: dict[str, Any] = {}
    """any other PEFT type: keyword arguments of its config class."""

    @field_validator("method")
    @classmethod
    def _lower_case(cls, method: str) -> str:
        return method.lower()

    @model_validator(mode="after")
    def _only_keys_of_the_method(self) -> "TuningConfig":
        unknown = self.model_fields_set - {"method"} - self._keys
        if unknown == {"encoder_size"} and self.method == "prefix_tuning":
            raise ValueError("encoder_size needs projection: true")
        if unknown:
            has = f"it reads {', '.join(sorted(self._keys))}" if self._keys else "it has no keys"
            raise ValueError(f"{', '.join(sorted(unknown))} has no meaning with method: {self.method}; {has}")
        return self

    @property
    def _keys(self) -> set[str]:
        """The keys that mean something here, beside `method`."""
        keys = KEYS.get(self.method, {"arguments"})
        if self.method == "prefix_tuning":
            return keys - ({"init", "init_text"} if self.projection else {"encoder_size"})
        return keys

    @model_serializer(mode="wrap")
    def _without_the_rest(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is written down is what can be read again."""
        return {key: value for key, value in handler(self).items() if key == "method" or key in self._keys}

    @property
    def starts_at_words(self) -> bool:
        """Whether a new prefix starts at keys and values of words; a prompt is made by PEFT itself."""
        by_words = self.init == "vocabulary" or self.init_text is not None
        return self.method == "prefix_tuning" and not self.projection and by_words

    @property
    def uses_virtual_tokens(self) -> bool:
        return self.method in VIRTUAL_TOKEN_METHODS

    def continues(self, parent: "TuningConfig") -> bool:
        """Whether this stage's adapter has the shape of its parent's, so that it can go on training a copy."""
        mine, others = self.model_dump(exclude=_START_ONLY), parent.model_dump(exclude=_START_ONLY)
        return mine == others

    def can_follow(self, parent: "TuningConfig") -> bool:
        """Whether this stage can build on what its parent trained."""
        return parent.method not in UNMERGEABLE or self.continues(parent)

    def starts_at(self, parent: "TuningConfig") -> bool:
        """Whether this stage's first output is its parent's to the bit, which new virtual tokens would change."""
        return self.continues(parent) if self.uses_virtual_tokens else self.can_follow(parent)
