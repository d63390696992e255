"""Where scores come from: a list of weighted terms."""

from typing import Any

from pydantic import Field, model_validator

from reward.contract import LIMIT
from reward.settings import Settings


class RewardTerm(Settings):
    model: str | None = None
    """`reward_model` for the stage of this run, or the `final/` folder of another reward model."""
    function: str | None = None
    """`package.module:name` or `path/to/file.py:name`; (prompts, completions, **columns) -> list[float]."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments passed to the function on every call."""
    limit: float = Field(default=LIMIT, gt=0, le=1e30)
    """Largest magnitude of a function's score (score units); a larger one is taken for a mistake and stops the run."""
    standardise: bool = False
    """Divide the model's centred scores by their standard deviation on demonstrations; rescales kl_coef."""
    weight: float = 1.0
    """Factor of this term in the sum (score units)."""

    @model_validator(mode="after")
    def _one_source(self) -> "RewardTerm":
        if (self.model is None) == (self.function is None):
            raise ValueError("a reward term needs exactly one of `model` and `function`")
        return self

    @property
    def name(self) -> str:
        """Label of this term in metrics and samples."""
        return "model" if self.model else self.function.rpartition(":")[2]
