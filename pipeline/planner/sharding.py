"""What ZeRO leaves of weights, gradients and optimizer state on one rank, and what it sends. Imports no torch.

ZeRO (arXiv 1910.02054): stage 1 partitions the optimizer state over the N ranks, stage 2 the gradients too, stage 3 the
weights too (section 5). Trained weights are float32 in every stage of this chain, so a trained number costs 4 bytes of
weight, 4 of gradient and 8 of AdamW's moments: 16, as much as mixed precision with its 2 + 2 + 12.
"""

from dataclasses import dataclass

FLOAT = 4
"""Bytes of a trained weight and of its gradient."""
_MOMENTS = 2
"""Numbers that AdamW keeps of each trained one."""


@dataclass(frozen=True)
class Split:
    """How the work is divided: every rank has whole roles, and of each what ZeRO leaves it."""

    ranks: int = 1
    zero: int = 0
    offload_optimizer: bool = False
    """Optimizer state and the gradients that it reads lie in the host's memory."""
    offload_parameters: bool = False
    """ZeRO-3: partitions of weights lie in the host's memory."""
    gather_for_rollouts: bool = True
    """ZeRO-3: every rank holds the whole policy during a rollout; else its layers are gathered for every token."""
    all_reduces: bool = True
    """Stages 1 and 2 add gradients up on every rank; DeepSpeed's default of use_multi_rank_bucket_allreduce."""
    bucket: int = 500_000_000
    """Gradients that DeepSpeed collects before it reduces them, at most; its default of reduce_bucket_size."""
    live: int = 1_000_000_000
    """Weights that ZeRO-3 keeps gathered, at most; its default of stage3_max_live_parameters."""

    @property
    def shares_bases(self) -> bool:
        """Whether roles can stand on one base: under ZeRO-3 each is split by itself, with all its weights."""
        return self.zero < 3

    @property
    def name(self) -> str:
        """As a person calls it."""
        offloaded = [what for what in ("optimizer", "parameters") if getattr(self, f"offload_{what}")]
        base = f"ZeRO-{self.zero}" if self.zero else "no ZeRO"
        base += ", rollouts layer by layer" if self.zero == 3 and not self.gather_for_rollouts else ""
        return base + (f", {' and '.join(offloaded)} offloaded" if offloaded else "")


@dataclass(frozen=True)
class Share:
    """Bytes of one role on one rank, for as long as the stage lasts; gradients from backward pass to update."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    host: float = 0.0
    """In the host's memory, for this rank."""


def share(trained: int, frozen_bytes: float, split: Split) -> Share:
    """What a role of `trained` float32 numbers, and of other weights that never change, takes on one rank.

    Weights 4 t + f, divided by N under stage 3; gradients 4 t, by N from stage 2; moments 8 t, by N from stage 1.
    Under stages 1 and 2 DeepSpeed steps a copy of the rank's own weights, 4 t / N more. Offloading moves the rank's
    part of the optimizer, with that copy and the gradients it reads, or of the weights, to the host.
    """
    n, z = split.ranks, split.zero
    weights = (FLOAT * trained + frozen_bytes) / (n if z == 3 else 1)
    gradients = FLOAT * trained / (n if z >= 2 else 1)
    copy = FLOAT * trained / n if z in (1, 2) or (z == 3 and split.offload_optimizer) else 0.0
    optimizer = _MOMENTS * FLOAT * trained / (n if z else 1) + copy
    host = 0.0
    if split.offload_optimizer and z:
        host = optimizer + FLOAT * trained / n
        gradients, optimizer = (0.0 if z >= 2 else gradients), 0.0
    if split.offload_parameters and z == 3:
        host, weights = host + weights, 0.0
    return Share(weights, gradients, optimizer, host)


def in_flight(trained: int, weight_bytes: float, split: Split) -> float:
    """Bytes of DeepSpeed's buffers while a role computes: gradients to be reduced, under stage 3 gathered weights."""
    bucket = FLOAT * min(split.bucket, trained) if split.zero and split.ranks > 1 else 0.0
    return bucket + gathered(min(FLOAT * split.live, weight_bytes), split)


def gathered(weight_bytes: float, split: Split) -> float:
    """Bytes of so many gathered weights under stage 3; a rank's own part of them lies beside them all the same."""
    return weight_bytes if split.zero == 3 and (split.ranks > 1 or split.offload_parameters) else 0.0


def sent_by_training(trained: int, frozen_bytes: float, split: Split, microbatches: int) -> float:
    """Bytes that a rank sends for one optimizer step of `microbatches` backward passes (arXiv 1910.02054, section 7).

    With T = 4 t bytes of trained and f of frozen weights. Stage 0: all-reduce, which is reduce-scatter and all-gather,
    2 T. Stage 1: gradients to their owners, T, and weights back, T. Stage 2 sends gradients after every backward pass:
    (k + 1) T. Stage 3 gathers weights for every forward and backward pass and reduces gradients: k (3 T + 2 f). Under
    stages 1 and 2 DeepSpeed by default all-reduces instead, 2 T for gradients: 3 T and (2 k + 1) T. Each of these moves
    (N - 1) / N of what the paper counts, so one rank sends nothing. scripts/benchmark/traffic_check.py counts them.
    """
    t = FLOAT * trained
    reduced = 2 * t if split.all_reduces else t
    volume = {
        0: 2 * t,
        1: reduced + t,
        2: microbatches * reduced + t,
        3: microbatches * (3 * t + 2 * frozen_bytes),
    }[split.zero]
    return volume * (split.ranks - 1) / split.ranks


def sent_by_reading(weight_bytes: float, split: Split, passes: int) -> float:
    """Bytes that a rank sends, and receives, so that weights can be used: all of them per pass under stage 3."""
    return passes * weight_bytes * (split.ranks - 1) / split.ranks if split.zero == 3 else 0.0
