"""The metrics that a reward term may name, and the arguments that each takes. Imports no torch."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from reward.settings import Settings


class BleuArguments(Settings):
    tokenize: Literal["13a", "intl", "char", "none"] = "13a"
    """sacrebleu's tokenizer; char for languages without spaces."""
    lowercase: bool = False
    """Compare without regard to case."""


class ChrfArguments(Settings):
    word_order: int = Field(default=0, ge=0, le=4)
    """Longest word n-grams that count beside the characters; 2 is chrF++."""
    lowercase: bool = False
    """Compare without regard to case."""


class RougeArguments(Settings):
    tokenizer: Literal["rouge", "words"] = "rouge"
    """rouge: lower-case runs of a-z and 0-9, as in published figures; words: those of the letters of any script."""
    stemmer: bool = False
    """Porter stemmer on English words of more than three letters; with tokenizer rouge."""

    @model_validator(mode="after")
    def _stems_what_it_knows(self) -> "RougeArguments":
        if self.stemmer and self.tokenizer != "rouge":
            raise ValueError("stemmer needs tokenizer: rouge")
        return self


class ExactMatchArguments(Settings):
    normalise: bool = False
    """Compare lower-case words without punctuation and without a, an, the, as SQuAD does."""


class RegexArguments(Settings):
    pattern: str
    """Regular expression of Python's `re`, searched anywhere in the completion; `(?i)` and the like at its start."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return pattern


class JsonArguments(Settings):
    required: list[str] = []
    """Keys that the object must have; without any, every JSON value is valid."""


class LengthArguments(Settings):
    target: float = Field(gt=0)
    """Wanted length (in `unit`)."""
    tolerance: float = Field(default=0.0, ge=0)
    """Distance from target within which the score is 1 (in `unit`)."""
    falloff: float | None = Field(default=None, gt=0)
    """Distance beyond that at which the score is 0 (in `unit`); null = target."""
    unit: Literal["words", "characters", "tokens"] = "words"
    """words: runs without white space; tokens: as the policy wrote them, the stop token included."""


class RepetitionArguments(Settings):
    n: int = Field(default=4, gt=0)
    """Words per n-gram."""


ARGUMENTS: dict[str, type[Settings]] = {
    "bleu": BleuArguments,
    "chrf": ChrfArguments,
    "rouge1": RougeArguments,
    "rouge2": RougeArguments,
    "rougeL": RougeArguments,
    "exact_match": ExactMatchArguments,
    "regex": RegexArguments,
    "json_valid": JsonArguments,
    "length": LengthArguments,
    "repetition": RepetitionArguments,
}
METRICS = tuple(ARGUMENTS)
COMPARING = METRICS[:6]
"""Those that compare with a reference column."""


def checked_arguments(metric: str, reference: str | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a metric, defaults included.

    Raises PydanticCustomError CONF02 for a reference that is missing or too many, and for wrong arguments.
    """
    if metric in COMPARING and reference is None:
        problem = f"metric {metric} needs 'reference', the column of the prompt data that it compares with"
        raise _mistake(problem, "reference", "add reference: <column>")
    if metric not in COMPARING and reference is not None:
        raise _mistake(f"metric {metric} compares with no reference", "reference", "remove 'reference'")
    kind = ARGUMENTS[metric]
    try:
        return kind.model_validate(arguments).model_dump()
    except ValidationError as error:
        told = "; ".join(_told(detail, kind) for detail in error.errors(include_url=False))
        fix = f"its arguments are: {', '.join(kind.model_fields) or 'none'}"
        raise _mistake(f"arguments of metric {metric}: {told}", "arguments", fix) from error


def _mistake(problem: str, key: str, fix: str) -> PydanticCustomError:
    return PydanticCustomError("CONF02", problem, {"key": key, "fix": fix})


def _told(detail: Any, kind: type[Settings]) -> str:
    key = ".".join(map(str, detail["loc"]))
    told = {"extra_forbidden": "is unknown", "missing": "is missing"}.get(detail["type"])
    said = detail["msg"].removeprefix("Value error, ")
    if told:
        return f"'{key}' {told}"
    return f"'{key}': {said}" if key else said
