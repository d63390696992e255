"""Rows to token ids: the one place where text becomes what a model sees, for all three stages.

A prompt is encoded with the tokenizer's special tokens, a completion without, and they are concatenated; so the
prompt's ids in PPO are a prefix of its ids in SFT. Chat rows go through the tokenizer's template. Whatever writes BOS,
the tokenizer, the template or the text itself, a sequence has one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stages.base import InputError

Row = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Rendered:
    """One example as ids; the completion ends with a stop token."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]

    @property
    def ids(self) -> list[int]:
        return [*self.prompt_ids, *self.completion_ids]


class Renderer:
    """Encodes prompts and completions with one tokenizer and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.doubled_bos = 0
        """Prompts that began with BOS twice, of which one was taken away."""

    def prompt(self, prompt: str | list[dict[str, str]]) -> list[int]:
        """Ids of a prompt: plain text, or messages that the assistant is to answer."""
        if isinstance(prompt, str):
            return self._opened(prompt)
        return self._template(prompt, add_generation_prompt=True)

    def completion(self, text: str) -> list[int]:
        """Ids of a completion, EOS appended."""
        return [*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]

    def decode(self, completions: Tensor, mask: Tensor) -> list[str]:
        """Texts of sampled completions [B, T] up to their stop tokens, which are left out."""
        rows = (ids[m].tolist() for ids, m in zip(completions, mask, strict=True))
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in rows]

    def demonstration(self, row: Row) -> Rendered:
        """A row with `messages`, `prompt, completion`, or `text` alone (whose first token is its prompt)."""
        if "messages" in row:
            return self._chat(row["messages"][:-1], row["messages"][-1])
        if "completion" in row:
            return self.pair(row["prompt"], row["completion"])
        ids = [*self._opened(row["text"]), self.tokenizer.eos_token_id]
        return Rendered(ids[:1], ids[1:])

    def _opened(self, text: str) -> list[int]:
        """Ids with the tokenizer's opening special tokens, without the EOS that some tokenizers append."""
        ids = list(self.tokenizer(text).input_ids)
        eos = self.tokenizer.eos_token_id
        appended = ids[-1:] == [eos] and self.tokenizer(text, add_special_tokens=False).input_ids[-1:] != [eos]
        return self._with_one_bos(ids[:-1] if appended else ids)

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        """Ids that begin with BOS once at most: what was trained on two of them is not what others will send."""
        bos, repeated = self.tokenizer.bos_token_id, 0
        while bos is not None and ids[repeated : repeated + 2] == [bos, bos]:
            repeated += 1
        self.doubled_bos += repeated > 0
        return ids[repeated:]

    def pair(self, prompt: str | list[dict[str, str]], completion: str) -> Rendered:
        """A prompt and one completion of it, as the reward model and PPO see them."""
        if isinstance(prompt, str):
            return Rendered(self.prompt(prompt), self.completion(completion))
        return self._chat(prompt, {"role": "assistant", "content": completion})

    def _chat(self, context: list[dict[str, str]], answer: dict[str, str]) -> Rendered:
        prompt = self.prompt(context)
        whole = self._template([*context, answer], add_generation_prompt=False)
        if whole[: len(prompt)] != prompt:
            raise InputError(
                "TMPL04",
                "the chat template renders a prompt differently once it is answered",
                fix="use a template whose prompt is a prefix of the whole",
            )
        answered = whole[len(prompt) :]
        eos = self.tokenizer.eos_token_id
        end = max((i + 1 for i, token in enumerate(answered) if token == eos), default=len(answered))
        answered = answered[:end]
        return Rendered(prompt, answered if answered and answered[-1] == eos else [*answered, eos])

    def _template(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> list[int]:
        if self.tokenizer.chat_template is None:
            raise InputError(
                "TMPL01",
                "the data has messages but the tokenizer has no chat_template",
                fix="use prompt/completion rows, or a tokenizer with a template",
            )
        try:
            encoded = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=True
            )
        except TemplateError as error:
            fix = "order roles and messages as that template wants them"
            raise InputError("TMPL05", f"the chat template refuses the messages ({error})", fix) from error
        return self._with_one_bos(list(encoded["input_ids"]))


def rendered(rows: Iterable[tuple[int, Row]], render: Callable[[Row], T], path: Path) -> list[T]:
    """`render` of every row; a mistake names the file and the row's number, which comes with it."""
    found = []
    for number, row in rows:
        try:
            found.append(render(row))
        except InputError as error:
            raise error.at(f"{path} row {number}") from error
    return found


def collate(rows: Sequence[Rendered], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [B, P+T], attention mask [B, P+T] and completion mask [B, T] of rendered rows, as in a rollout."""
    prompt = max(1, max(len(r.prompt_ids) for r in rows))
    width = max(len(r.completion_ids) for r in rows)
    ids = torch.full((len(rows), prompt + width), pad_id)
    attended = torch.zeros(ids.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        start, end = prompt - len(row.prompt_ids), prompt + len(row.completion_ids)
        ids[i, start:end] = torch.tensor([*row.prompt_ids, *row.completion_ids])
        attended[i, start:end] = True
    return ids, attended, attended[:, prompt:]
