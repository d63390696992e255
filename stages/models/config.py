"""What a user says about a model and about how a stage tunes it."""

from typing import Literal

from pydantic import Field, model_validator

from reward.settings import Settings


class ModelConfig(Settings):
    path: str
    """Hub id, folder, or GGUF file of the base model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage type of frozen weights; trained weights are always float32."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Type of matrix products (autocast); log-probabilities, values and losses stay float32."""
    trust_remote_code: bool = False
    """Run Python code shipped with the model. Off unless you have read that code."""

    @model_validator(mode="after")
    def _one_precision(self) -> "ModelConfig":
        if self.dtype == "bfloat16" and self.compute != "bfloat16":
            raise ValueError("dtype: bfloat16 needs compute: bfloat16")
        return self


class TuningConfig(Settings):
    method: Literal["full", "lora"] = "full"
    """Which parameters a stage trains."""
    r: int = Field(default=16, gt=0)
    """LoRA rank."""
    alpha: float = Field(default=32, gt=0)
    """LoRA scale: the update is alpha / r * B A."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """LoRA dropout probability; only SFT may use it."""
    targets: list[str] | Literal["auto", "all-linear"] = "auto"
    """Names of adapted modules; auto = query and value projections, by architecture."""
    top_layers: int | None = Field(default=None, gt=0)
    """Adapt only this many of the last layers (layers); null = every layer."""

    @model_validator(mode="after")
    def _lora_keys_need_lora(self) -> "TuningConfig":
        given = self.model_fields_set - {"method"}
        if self.method == "full" and given:
            raise ValueError(f"{', '.join(sorted(given))} has no meaning with method: full; set method: lora")
        return self
