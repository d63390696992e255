"""Roles as modules: a policy gives log-probabilities, a scorer gives scalars.

Axes: B batch, P prompt, T completion, S = P + T.

`logits[:, P-1+t]` predict completion token t, and `values[:, t]` belong to the state before it: both are read from
the hidden states `[:, P-1:-1]`. Reading one column further right would score the state after the token.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from stages.models.precision import autocast
from stages.models.trunk import inner_model, unwrapped
from stages.models.virtual_tokens import counted_positions

CHUNK_TOKENS = 512  # logits are never held for more tokens than these; at a vocabulary of 50k that is 100 MB


def hidden_states(model: nn.Module, ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Last hidden states [B, S, H], with positions counted from the mask (GPT-2 needs them under left padding)."""
    output = inner_model(model)(
        input_ids=ids,
        attention_mask=attention_mask.long(),
        position_ids=counted_positions(attention_mask),
        use_cache=False,
    )
    return output.last_hidden_state


class TokenScores(NamedTuple):
    """Per completion token, float32 [B, T]; 0 outside the completion mask."""

    logprobs: Tensor
    entropy: Tensor


class PolicyModel(nn.Module):
    """A causal language model read as a distribution over completions at a sampling temperature."""

    def __init__(self, lm: nn.Module, temperature: float = 1.0, compute: str = "float32"):
        super().__init__()
        self.lm = lm
        self.temperature = temperature
        self.compute = compute

    def forward(self, ids: Tensor, attention_mask: Tensor, mask: Tensor, with_entropy: bool = True) -> TokenScores:
        """Log-probabilities of the completion `ids[:, P:]` where `mask` [B, T] is True, and the entropies there.

        Logits exist only for masked tokens, CHUNK_TOKENS at a time, and are recomputed in the backward pass.
        """
        width = mask.shape[1]
        with autocast(self.compute, ids.device):
            hidden = hidden_states(self.lm, ids, attention_mask)[:, -width - 1 : -1][mask]
            chunks = zip(hidden.split(CHUNK_TOKENS), ids[:, -width:][mask].split(CHUNK_TOKENS), strict=True)
            parts = [self._chunk(h, targets, with_entropy) for h, targets in chunks]
        filled = torch.zeros(mask.shape, dtype=torch.float32, device=ids.device)
        return TokenScores(*(filled.masked_scatter(mask, torch.cat(column)) for column in zip(*parts, strict=True)))

    def _chunk(self, hidden: Tensor, targets: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            return checkpoint(self._token_scores, hidden, targets, with_entropy, use_reentrant=False)
        return self._token_scores(hidden, targets, with_entropy)

    def _token_scores(self, hidden: Tensor, targets: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor]:
        logits = self.logits(hidden).float().div_(self.temperature)
        # Cross-entropy is log-softmax and gather in one: half the passes over [N, V] of writing them out.
        logprobs = -functional.cross_entropy(logits, targets, reduction="none")
        if not with_entropy:
            return logprobs, torch.zeros_like(logprobs)
        log_pi = torch.log_softmax(logits, dim=-1)
        return logprobs, -(log_pi.exp() * log_pi).sum(-1)

    def logits(self, hidden: Tensor) -> Tensor:
        """The output layer with the scaling and capping that some architectures put after it."""
        lm = unwrapped(self.lm)
        config = lm.config.get_text_config()
        logits = lm.get_output_embeddings()(hidden)
        for factor in ("logit_scale", "lm_head_multiplier"):
            logits = logits * (getattr(config, factor, None) or 1.0)
        logits = logits / (getattr(config, "logits_scaling", None) or 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)


class ScoreModel(nn.Module):
    """A sequence-classification model with one label, read at every position or at the last one.

    `mean` and `std` are the statistics of demonstrations under the reward model; scores are (score - mean) / std,
    so that 0 is an average demonstration.
    """

    def __init__(self, classifier: nn.Module, mean: float = 0.0, std: float = 1.0, compute: str = "float32"):
        super().__init__()
        self.classifier = classifier
        self.compute = compute
        self.mean = mean
        self.std = std

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Centred scalars at every position, float32 [B, S]."""
        classifier = unwrapped(self.classifier)
        with autocast(self.compute, ids.device):
            hidden = hidden_states(classifier, ids, attention_mask)
        with torch.autocast(hidden.device.type, enabled=False):  # one scalar decides: keep the head in float32
            scalars = classifier.score(hidden.float()).squeeze(-1)
        return (scalars - self.mean) / self.std

    def values(self, ids: Tensor, attention_mask: Tensor, width: int) -> Tensor:
        """Value of the state before each completion token, float32 [B, T] for T = width."""
        return self(ids, attention_mask)[:, -width - 1 : -1]

    def scores(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score of each text, float32 [B]: read at its last attended token, whatever the padding side."""
        columns = torch.arange(ids.shape[1], device=ids.device)
        last = (columns * attention_mask).argmax(1)
        return self(ids, attention_mask).gather(1, last.unsqueeze(1)).squeeze(1)
