"""Knobs of supervised fine-tuning."""

from pydantic import Field, field_validator, model_validator

from reward.settings import Settings
from stages.template import Template
from stages.trainer_config import TrainerConfig


class ClassificationConfig(Settings):
    prompt: str
    """Text before the label: `{text}` once and any other `{column}` of the row; doubled braces mean themselves."""
    completion: str = " {label}"
    """What the model is to write: `{label}` once, where the word of the row's label comes."""
    labels: dict[str, str] = Field(min_length=2)
    """Word that stands for each value of the rows' column `label`; a number is given by its digits."""

    @field_validator("prompt")
    @classmethod
    def _asks_about_the_text(cls, prompt: str) -> str:
        columns = Template(prompt).columns
        if columns.count("text") != 1:
            raise ValueError(f"{prompt!r} has {{text}} {columns.count('text')} times, expected once")
        if "label" in columns:
            raise ValueError(f"{prompt!r} has {{label}}, which would tell the answer")
        return prompt

    @field_validator("completion")
    @classmethod
    def _says_the_label(cls, completion: str) -> str:
        columns = Template(completion).columns
        if columns != ["label"]:
            found = " ".join(f"{{{column}}}" for column in columns) or "no place"
            raise ValueError(f"{completion!r} has {found}, expected {{label}} once and nothing else")
        return completion

    @field_validator("labels")
    @classmethod
    def _words_that_differ(cls, labels: dict[str, str]) -> dict[str, str]:
        words = [word.strip() for word in labels.values()]
        if "" in words:
            raise ValueError("a label has an empty word")
        repeated = sorted({word for word in words if words.count(word) > 1})
        if repeated:
            raise ValueError(f"two labels have the word {repeated[0]!r}, so they could not be told apart")
        return labels


class SFTConfig(TrainerConfig):
    completion_only_loss: bool = True
    """Prompt tokens carry no loss. Rows with only `text` always train on every token."""
    packing: bool = False
    """Join rows into blocks of max_length tokens; documents do not see each other."""
    samples: int = Field(default=3, ge=0)
    """Held-out prompts completed before and after training."""
    sample_tokens: int = Field(default=48, gt=0)
    """Tokens of each such completion."""
    classification: ClassificationConfig | None = None
    """Rows are `text, label`, made into prompt and completion; SFT reports accuracy and macro-F1 on held-out rows."""

    @model_validator(mode="after")
    def _rows_apart(self) -> "SFTConfig":
        if self.packing and self.classification:
            raise ValueError("packing has no meaning with classification, whose rows stay apart; set packing: false")
        return self
