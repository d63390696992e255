"""Sequence classifiers of others, whole or as a PEFT adapter, that read texts in their own way."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jinja2 import TemplateError
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stages.base import InputError
from stages.models.classifier_facts import label_of, labels_of
from stages.models.hub import folder_of
from stages.models.load import disable_dropout
from stages.models.precision import autocast, device
from stages.models.scalar import read_classifier
from stages.models.trunk import unwrapped
from stages.models.trusted import adapter_base, require_safe

BATCH = 32
_UNSET = 1_000_000
"""From here on a tokenizer's model_max_length says that nobody has set it."""


def load_classifier_of_others(path: str, dtype: str, trust_remote_code: bool = False) -> nn.Module:
    """A classification model with all its labels, in eval mode.

    Raises InputError PATH01 (no such model), RM04 (no head), and those of `require_safe`.
    """
    folder = folder_of(path, code=trust_remote_code)
    require_safe(folder, trust_remote_code)
    base = adapter_base(folder)
    if base is None:
        return _whole(folder, dtype, trust_remote_code).requires_grad_(False)
    model = _whole(folder_of(base), dtype, num_labels=len(labels_of(folder)))
    return PeftModel.from_pretrained(model, folder).eval().requires_grad_(False)


def _whole(folder: str, dtype: str, trust_remote_code: bool = False, **changes: Any) -> PreTrainedModel:
    model, missing = read_classifier(folder, dtype, trust_remote_code, **changes)
    if missing and not changes:
        raise InputError(
            "RM04",
            f"{folder} has no weights for {missing[:3]}",
            fix="name a folder that was saved with its head",
        )
    return disable_dropout(model.eval())


@dataclass(frozen=True)
class TextClassifier:
    """One logit of a classifier, read on texts that its own tokenizer and template make."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    label: int
    compute: str

    @staticmethod
    def load(path: str, label_index: int | None, dtype: str, compute: str, trust: bool = False) -> "TextClassifier":
        """Raises InputError as `load_classifier_of_others`, RM01 and RM07 as `label_of`."""
        model = load_classifier_of_others(path, dtype, trust).to(device())
        folder = folder_of(path, code=trust)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        tokenizer.truncation_side = "left"  # the completion stands at the end
        return TextClassifier(model, tokenizer, label_of(path, label_index), compute)

    @cached_property
    def limit(self) -> int:
        """Tokens that it can read."""
        positions = getattr(self._config, "max_position_embeddings", None) or sys.maxsize
        longest = self.tokenizer.model_max_length
        return longest if longest < min(_UNSET, positions) else positions

    def ids(self, prompt: str | list[dict[str, str]], completion: str) -> list[int]:
        """A prompt and its completion through the chat template, or as one text where there is none.

        What is too long loses its beginning. Raises InputError TMPL01 (messages without template), TMPL05.
        """
        if self.tokenizer.chat_template is None:
            if not isinstance(prompt, str):
                problem = (
                    f"the prompts are messages, and reward model {self.tokenizer.name_or_path} has no chat_template"
                )
                raise InputError("TMPL01", problem, fix="use text prompts, or a reward model with a template")
            return list(self.tokenizer(prompt + completion, truncation=True, max_length=self.limit).input_ids)
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        messages = [*asked, {"role": "assistant", "content": completion}]
        try:
            found = self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        except TemplateError as error:
            problem = f"the chat template of reward model {self.tokenizer.name_or_path} refuses the messages ({error})"
            raise InputError("TMPL05", problem, fix="order roles and messages as that template wants them") from error
        return list(found)[-self.limit :]

    @torch.no_grad()
    def __call__(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """The logit of each text, as if it were alone."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        scores: dict[int, float] = {}
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            scores |= dict(zip(chosen, self._logits([texts[i] for i in chosen]).tolist(), strict=True))
        return [scores[i] for i in range(len(texts))]

    def _logits(self, texts: Sequence[Sequence[int]]) -> Tensor:
        own = self._config.pad_token_id
        pad = own if own is not None else _absent(texts)
        width = max(map(len, texts))
        ids = torch.tensor([[*text, *[pad] * (width - len(text))] for text in texts], device=device())
        attended = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts], device=device())
        try:
            self._config.pad_token_id = pad  # decoders read the last token that is not this one
            with autocast(self.compute, ids.device):
                return self.model(input_ids=ids, attention_mask=attended).logits[:, self.label].float()
        finally:
            self._config.pad_token_id = own

    @property
    def _config(self) -> Any:
        return unwrapped(self.model).config.get_text_config()


def _absent(texts: Sequence[Sequence[int]]) -> int:
    """The smallest id that is in none of the texts."""
    used = {token for text in texts for token in text}
    return next(i for i in range(len(used) + 1) if i not in used)
