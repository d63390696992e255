"""What a forward pass keeps for the backward pass, and what it holds meanwhile. Bytes; imports no torch.

A ledger of the tensors that autograd saves in a layer of transformers' eager code with scaled-dot-product attention,
one line per tensor, as arXiv 2205.05198 (section 4.1) counts them for GPT with dropout: no dropout here, and attention
scores never exist. tests/pipeline/planner/test_activations.py compares it with what autograd really saves.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.planner.architecture import ATTENTION, GATED, GPT2, NEOX, Architecture, Linear
from pipeline.planner.tuned import adapted, bottleneck_width
from stages.models.config import TuningConfig

_NORM = 4
"""Bytes of a number that a norm reads: it computes in float32."""


@dataclass(frozen=True)
class Precision:
    """Bytes of a number: of frozen weights, of the states between layers, and in matrix products."""

    stored: float = 4
    stream: int = 4
    compute: int = 4

    @property
    def casts(self) -> bool:
        """Whether autocast makes copies of weights in the type of the products."""
        return self.compute < self.stored


@dataclass(frozen=True)
class Batch:
    """Sequences of one forward pass and their longest length, virtual tokens included."""

    rows: int
    length: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def saved_per_token(a: Architecture, tuning: TuningConfig, p: Precision, length: int) -> float:
    """Bytes that one layer saves of one token in a sequence of this length."""
    full = tuning.method == "full"
    inputs = sum(_saved_inputs(a, a.linears if full else _trained_linears(a, tuning), p, full))
    return _norms(a, full) + _attention(a, p, length, full) + _feed_forward(a, p) + inputs + _added(a, tuning, p)


def _norms(a: Architecture, full: bool) -> float:
    """States before each norm, H; RMSNorm in full fine-tuning keeps them normalised too, for its scale."""
    states = 1 if a.parallel_residual else 2
    return _NORM * a.hidden * (states + (2 if full and a.layout == GATED else 0))


def _attention(a: Architecture, p: Precision, length: int, full: bool) -> float:
    """Queries, keys, values (each of all heads: A d) and output, a row of the mask, the log-sum of each head.

    GPT-NeoX keeps what its fused projection gave beside the queries and keys that it rotates.
    """
    tensors = 6 if a.layout == NEOX else 4
    return p.compute * (tensors * a.query_size + length) + 4 * a.heads


def _feed_forward(a: Architecture, p: Precision) -> float:
    """Gated: gate, its activation, the other factor, 3 F. GPT-2 writes GELU out: 4 F. GPT-NeoX: what GELU reads, F."""
    return p.compute * a.intermediate * {GATED: 3, GPT2: 4, NEOX: 1}[a.layout]


def _trained_linears(a: Architecture, tuning: TuningConfig) -> tuple[Linear, ...]:
    return adapted(a, tuning) if tuning.method == "lora" else ()


def _saved_inputs(a: Architecture, linears: tuple[Linear, ...], p: Precision, full: bool) -> Iterator[float]:
    """What the matrices read of which a gradient is wanted: once for those that read the same, or one copy each.

    The output of attention is on the ledger already, unless the matrix after it has a copy.
    """
    apart = p.compute < _NORM  # autocast copies for every matrix
    known = {ATTENTION} if a.layout != NEOX and (full or not apart) else set()
    for linear in linears:
        if linear.reads not in known:
            yield p.compute * linear.inputs
        if not apart:
            known.add(linear.reads)


def _added(a: Architecture, tuning: TuningConfig, p: Precision) -> float:
    """LoRA: r per adapted matrix. Bottleneck: what it reads and its w hidden units."""
    if tuning.method == "lora":
        return p.compute * tuning.r * len(adapted(a, tuning))
    if tuning.method == "adapter":
        return p.compute * sum(x.outputs + bottleneck_width(x, tuning) for x in adapted(a, tuning))
    return 0.0


def saved(
    a: Architecture, tuning: TuningConfig, p: Precision, batch: Batch, frozen_layers: int, recompute: bool
) -> float:
    """Bytes that the layers save of a batch: those above the frozen ones; only what enters each if it is recomputed.

    Recomputing (arXiv 1604.06174) keeps H per layer and token, and a layer's whole ledger while that layer is at work.
    """
    layers = a.layers - frozen_layers
    layer = batch.tokens * saved_per_token(a, tuning, p, batch.length)
    if recompute:
        return layers * batch.tokens * a.hidden * p.stream + layer
    return layers * layer


def copied_weights(a: Architecture, tuning: TuningConfig, p: Precision, frozen_layers: int, recompute: bool) -> float:
    """Bytes of autocast's copies of float32 weights while a role learns.

    Backward reads those of the layers above the frozen ones. When layers are recomputed, one layer's are left, but
    for whole weights autocast keeps its copies until the end of the forward pass all the same.
    """
    if not p.casts:
        return 0.0
    layer, depth = p.compute * a.matrix_parameters // a.layers, a.layers - frozen_layers
    return layer * (1 if recompute and tuning.method != "full" else depth)


def working(a: Architecture, p: Precision, batch: Batch) -> float:
    """What one layer holds at a time: three tensors of the feed-forward, two states, a norm's output, the mask."""
    row = 3 * a.intermediate * p.compute + a.hidden * (2 * p.stream + _NORM)
    return batch.tokens * (row + batch.length * p.compute)


def cache_per_token(a: Architecture, p: Precision) -> float:
    """Bytes of the keys and values of one layer and token: 2 K d numbers.

    Rotated keys have the type of the states between layers, values that of the products.
    """
    rotated = p.compute if a.layout == GPT2 else p.stream
    return a.kv_size * (rotated + p.compute)


def cache(a: Architecture, p: Precision, batch: Batch) -> float:
    """Bytes of the cache of all layers; one layer's is there twice while it grows, and once more for all heads."""
    layer = batch.tokens * cache_per_token(a, p)
    every_head = 2 * a.query_size * p.compute * batch.tokens if a.query_size > a.kv_size else 0
    return (a.layers + 1) * layer + every_head
