"""Completions of the SFT model on held-out prompts: what PPO will ask the reward model about first."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from stages.render import Rendered
from stages.reward_model.pairs import Pair
from stages.rollout import Sampler

SAMPLES = 64
MAX_NEW_TOKENS = 256
SAMPLING_SEED = 7919
"""Added to the seed of the run: no other completions are drawn with the same random numbers."""


@dataclass(frozen=True)
class Samples:
    """Sampled completions, rendered as the reward model reads them."""

    rows: Sequence[Rendered]
    unfinished: int
    """Those that reached the length limit without a stop token."""
    max_new_tokens: int


def prompts_with_room(pairs: Sequence[Pair], max_length: int) -> tuple[list[tuple[int, ...]], int]:
    """At most SAMPLES different prompts of the pairs at even distances, and how many tokens to sample after each.

    As many as the longest answer of the pairs has, MAX_NEW_TOKENS at most; prompts that leave less room within
    `max_length` are passed over, and the shortest prompt always fits.
    """
    prompts = list(dict.fromkeys(tuple(pair.chosen.prompt_ids) for pair in pairs))
    longest = max(len(side.completion_ids) for pair in pairs for side in (pair.chosen, pair.rejected))
    new_tokens = min(MAX_NEW_TOKENS, longest, max_length - min(map(len, prompts)))
    fitting = [prompt for prompt in prompts if len(prompt) + new_tokens <= max_length]
    if len(fitting) > SAMPLES:
        fitting = [fitting[i * len(fitting) // SAMPLES] for i in range(SAMPLES)]
    return fitting, new_tokens


def drawn(sampler: Sampler, lm: nn.Module, prompts: Sequence[Sequence[int]], batch_size: int) -> Samples:
    """One completion of each prompt; its random numbers depend on the sampler's seed and on its place alone."""
    rows, unfinished = [], 0
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        sampled = sampler(lm, batch, range(start, start + len(batch)))
        unfinished += int((~sampled.stopped).sum())
        completions = zip(batch, sampled.completions, sampled.mask, strict=True)
        rows += [Rendered(prompt, ids[mask].tolist()) for prompt, ids, mask in completions]
    return Samples(rows, unfinished, sampler.max_new_tokens)
