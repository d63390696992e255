"""Where scores come from: a list of weighted terms, each with one source. Imports no torch."""

from typing import Any, Literal

from pydantic import Field, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from reward.calls import Call
from reward.contract import LIMIT
from reward.metric_config import METRICS, checked_arguments
from reward.remote_config import RemoteConfig
from reward.settings import Settings

OWN = "reward_model"
"""What a term calls the reward model of this run."""
Combine = Literal["mean", "min", "mean_minus_std"]

SOURCES: dict[str, tuple[str, ...]] = {
    "model": ("standardise", "combine", "k", "label_index"),
    "metric": ("reference", "arguments"),
    "function": ("arguments", "limit", "call", "concurrency"),
    "remote": ("limit",),
}
"""What may score a term, and the keys that only a term of that kind has; every other key fits all of them."""


class FixedNormalisation(Settings):
    mean: float = 0.0
    """Taken off the source's score (score units)."""
    std: float = Field(default=1.0, gt=0)
    """What the rest is divided by (score units)."""


class RewardTerm(Settings):
    model: str | list[str] | None = None
    """`reward_model` for the stage of this run, the folder of another reward model, a classifier's folder or hub id;
    or a list of these."""
    metric: Literal[METRICS] | None = None
    """A metric of the completion's text, 0 to 1; docs/rewards.md defines each."""
    function: str | None = None
    """`package.module:name` or `path/to/file.py:name`; (prompts, completions, **columns) -> list[float]."""
    remote: RemoteConfig | None = None
    """A server that is sent the texts and answers with scores; docs/rewards.md has its protocol."""
    reference: str | None = None
    """Column of the prompt data that a metric compares with: a text per row, or a list of texts."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments passed to the function on every call, or those of the metric."""
    call: Call = "batch"
    """single: the function is asked about each completion alone, (prompt, completion, **columns) -> float."""
    concurrency: int = Field(default=8, gt=0)
    """Calls of an async function that are under way at once, with call: single."""
    limit: float = Field(default=LIMIT, gt=0, le=1e30)
    """Largest magnitude of a function's or server's score (score units); a larger one stops the run as a mistake."""
    standardise: bool = False
    """Divide the model's centred scores by their standard deviation on demonstrations; rescales kl_coef."""
    label_index: int | None = Field(default=None, ge=0)
    """Which logit of a classifier is the score, counted from 0; needed where it has several."""
    combine: Combine = "mean"
    """Of several reward models: the mean of their scores, the least, or the mean less k standard deviations."""
    k: float = Field(default=1.0, ge=0)
    """Standard deviations over the reward models (ddof 0) that combine: mean_minus_std takes off the mean."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Label of this term in metrics and samples; null = that of its source."""
    weight: float = 1.0
    """Factor of this term in the sum, after normalise and clip (score units)."""
    clip: float | None = Field(default=None, gt=0)
    """Scores of this term are clipped to +- this value, once normalised (score units); null = off."""
    normalise: Literal["none", "running", "running_centred"] | FixedNormalisation = "none"
    """running: divide by the standard deviation of all scores of this term so far; running_centred: take their mean off
    before; or fixed numbers, {mean, std}."""

    @model_validator(mode="after")
    def _one_source(self) -> "RewardTerm":
        if sum(getattr(self, source) is not None for source in SOURCES) != 1:
            raise ValueError(f"a reward term needs exactly one of {', '.join(f'`{source}`' for source in SOURCES)}")
        for key in self._strange_keys():
            owners = " or ".join(source for source, keys in SOURCES.items() if key in keys)
            problem = f"'{key}' belongs to a term with {owners}, and this one has {self.source}"
            raise PydanticCustomError("CONF02", problem, {"key": key, "fix": f"remove '{key}'"})
        if self.model == []:
            raise ValueError("'model' names no reward model")
        if self.k != 1.0 and self.combine != "mean_minus_std":
            raise ValueError("'k' acts with combine: mean_minus_std alone")
        if self.metric:
            checked_arguments(self.metric, self.reference, self.arguments)
        return self

    @model_serializer(mode="wrap")
    def _own_keys(self, write: Any) -> dict[str, Any]:
        """Only the keys of its source, so that what is written can be read back."""
        return {key: value for key, value in write(self).items() if self._fits(key)}

    @property
    def source(self) -> str:
        """Which of SOURCES scores this term."""
        return next(source for source in SOURCES if getattr(self, source) is not None)

    @property
    def models(self) -> list[str]:
        """The reward models that it names; none where something else scores."""
        return [self.model] if isinstance(self.model, str) else self.model or []

    @property
    def label(self) -> str:
        """What this term is called in metrics and samples."""
        if self.name:
            return self.name
        by_source = {"metric": self.metric, "function": (self.function or "").rpartition(":")[2]}
        return by_source.get(self.source, self.source)

    def _fits(self, key: str) -> bool:
        anyone = key not in SOURCES and not any(key in keys for keys in SOURCES.values())
        return anyone or key == self.source or key in SOURCES[self.source]

    def _strange_keys(self) -> list[str]:
        """Keys of other sources that are set to something."""
        fields = type(self).model_fields
        others = [key for key in fields if key not in SOURCES and not self._fits(key)]
        return [key for key in others if getattr(self, key) != fields[key].get_default(call_default_factory=True)]
