"""Sampling completions. Axes: B batch, P prompt, T completion, S = P + T.

Every draw is a function of (seed, episode, token), whatever the batch it is made in.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from stages.models.precision import autocast
from stages.models.trunk import unwrapped
from stages.models.virtual_tokens import generate


def completion_mask(completions: Tensor, stop_ids: Sequence[int]) -> Tensor:
    """True up to and including the first stop token, all True without one. [B, T] ids -> bool [B, T].

    Taken from where sampling stopped, never from `ids != pad`, so a padding id equal to the stop id is harmless.
    """
    is_stop = torch.isin(completions, torch.tensor(list(stop_ids), device=completions.device)).int()
    return (is_stop.cumsum(1) - is_stop) == 0


class Rows:
    """A frozen dataclass of tensors that share their first axis."""

    def __getitem__(self, rows: Tensor | slice):
        """The same fields for a choice of rows."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))


@dataclass(frozen=True)
class Rollout(Rows):
    """Sampled completions. Prompts are left-padded to P, completions right-padded to T."""

    ids: Tensor  # long [B, S]
    prompt_mask: Tensor  # bool [B, P]
    mask: Tensor  # bool [B, T], the stop token included
    stopped: Tensor  # bool [B], whether a stop token was sampled
    sampled_logprobs: Tensor  # float [B, T], as the sampler saw them; only an alarm is computed from them

    @property
    def attention_mask(self) -> Tensor:
        """bool [B, S]"""
        return torch.cat([self.prompt_mask, self.mask], dim=1)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each completion, the stop token included; long [B]."""
        return self.mask.sum(1)

    def trimmed(self) -> tuple["Rollout", slice]:
        """The same rows without the columns that are padding in all of them; and which of the S columns remain."""
        first, width = int(self.prompt_mask.any(0).int().argmax()), int(self.lengths.max())
        columns = slice(first, self.prompt_mask.shape[1] + width)
        cut = {f.name: getattr(self, f.name) for f in fields(self)}
        cut = {name: value[:, :width] if value.dim() == 2 else value for name, value in cut.items()}
        cut |= {"ids": self.ids[:, columns], "prompt_mask": self.prompt_mask[:, first:]}
        return type(self)(**cut), columns

    @property
    def completions(self) -> Tensor:
        """long [B, T]"""
        return self.ids[:, self.prompt_mask.shape[1] :]

    def answers(self) -> list[list[int]]:
        """The token ids of each completion, without padding."""
        return [ids[own].tolist() for ids, own in zip(self.completions, self.mask, strict=True)]


def uniforms(seed: int, episodes: Sequence[int], width: int) -> Tensor:
    """One number in [0, 1) per completion token, float64 [B, T]; row i depends on (seed, episodes[i]) alone."""
    rows = [np.random.Generator(np.random.Philox(key=[seed, episode])).random(width) for episode in episodes]
    return torch.from_numpy(np.stack(rows))


class InverseCDF(LogitsProcessor):
    """Draws each token by inverting the cumulative distribution at a given number; generate() then takes the argmax.

    One random number per token instead of one per vocabulary entry: faster on CPU, and reproducible row by row.
    """

    def __init__(self, draws: Tensor, temperature: float):
        self._draws = draws
        self._temperature = temperature
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logprobs = torch.log_softmax(scores.float() / self._temperature, dim=-1)
        cumulative = logprobs.exp().cumsum(-1)
        total = cumulative[:, -1]
        # Rounded to float32, a number just below 1 would reach the total and fall past the last likely token.
        draw = torch.minimum(self._draws[:, len(self.logprobs)].to(total) * total, torch.nextafter(total, -total))
        chosen = torch.searchsorted(cumulative, draw.unsqueeze(1), right=True).clamp(max=scores.shape[1] - 1)
        self.logprobs.append(logprobs.gather(1, chosen).squeeze(1))
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int, width: int = 0) -> tuple[Tensor, Tensor]:
    """Ids [B, P] and mask [B, P] of prompts aligned at their last token; P is that of the longest, or `width`."""
    width = max(width, *(len(p) for p in prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts])
    return ids, mask


class Sampler:
    """Draws completions from the full softmax at a temperature, up to a stop token or a length."""

    def __init__(
        self,
        *,
        stop_ids: Sequence[int],
        pad_id: int,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        compute: str = "float32",
        in_step: bool = False,
    ):
        """With `in_step`, every rank makes as many forward passes as the one with the longest completion."""
        self.stop_ids = tuple(stop_ids)
        self.pad_id = pad_id
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.seed = seed
        self.compute = compute
        self.in_step = in_step

    @torch.no_grad()
    def __call__(
        self, lm: nn.Module, prompts: Sequence[Sequence[int]], episodes: Sequence[int], width: int = 0
    ) -> Rollout:
        """Complete each prompt (token ids); `episodes` are the global indices that number the random draws.

        The prompts are padded to `width` columns, or to the longest of them.
        """
        ids, prompt_mask = left_pad(prompts, self.pad_id, width)
        device = next(lm.parameters()).device
        ids, prompt_mask = ids.to(device), prompt_mask.to(device)
        draw = InverseCDF(uniforms(self.seed, episodes, self.max_new_tokens).to(device), self.temperature)
        with autocast(self.compute, device), generating_with(lm, self._plain_greedy()):
            processors = LogitsProcessorList([draw])
            sampled = generate(lm, ids, prompt_mask, logits_processor=processors, synced_gpus=self.in_step)
        completions = torch.full((len(prompts), self.max_new_tokens), self.pad_id, device=device)
        completions[:, : sampled.shape[1]] = sampled
        mask = completion_mask(completions, self.stop_ids)
        mask[:, len(draw.logprobs) :] = False
        stopped = torch.isin(completions, torch.tensor(self.stop_ids, device=device)).logical_and(mask).any(1)
        logprobs = torch.zeros(mask.shape, device=device)
        logprobs[:, : len(draw.logprobs)] = torch.stack(draw.logprobs, dim=1)
        return Rollout(torch.cat([ids, completions], 1), prompt_mask, mask, stopped, torch.where(mask, logprobs, 0.0))

    def _plain_greedy(self) -> GenerationConfig:
        """Greedy over the processor's choice, and nothing else that changes a distribution."""
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            use_cache=True,
            eos_token_id=list(self.stop_ids),
            pad_token_id=self.pad_id,
        )


@contextmanager
def generating_with(lm: nn.Module, config: GenerationConfig) -> Iterator[None]:
    """Inside, generate() sees this config alone: it would fill what is unset from the one in the model's folder.

    The output layer gets contiguous input meanwhile. After the prompt it is handed a slice [B, 1, H], for which linear
    would copy its whole weight once per row: 3.6 GB at 64 rows and a vocabulary of 49k.
    """
    base = unwrapped(lm)
    own, base.generation_config = base.generation_config, config
    hook = base.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    try:
        yield
    finally:
        hook.remove()
        base.generation_config = own
