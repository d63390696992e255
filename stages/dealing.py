"""Which rows a rank takes in which forward pass: a function of the seed, the epoch and the split of the batch alone.

A batch is B neighbours of the epoch's order, whoever computes it. The last batch of an epoch may be smaller; where it
cannot be shared evenly, some passes get a filler row that weighs nothing, so that all ranks make the same passes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset
from transformers.trainer_pt_utils import LengthGroupedSampler

from stages.batch_split import BatchSplit

WEIGHT = "weight"
"""Column with the weight of a row; 0 for a filler."""


class Dealt(NamedTuple):
    """One row of a forward pass."""

    index: int
    weight: float
    """The sum over a pass's rows, divided by the passes and averaged over the ranks, is the mean of the batch."""


def deal(rows: Sequence[int], split: BatchSplit, rank: int) -> Iterator[list[Dealt]]:
    """The forward passes of a rank over one batch of at most `split.batch` rows.

    >>> list(deal([7, 8, 9], BatchSplit(microbatch=2, accumulation=2, ranks=2), rank=1))
    [[Dealt(index=9, weight=0.6666666666666666), Dealt(index=7, weight=0.0)]]
    """
    passes = math.ceil(len(rows) / (split.microbatch * split.ranks))
    size = math.ceil(len(rows) / (passes * split.ranks))
    weight = passes * split.ranks / len(rows)
    for number in range(rank * passes, (rank + 1) * passes):
        real = [Dealt(index, weight) for index in rows[number * size : (number + 1) * size]]
        yield real + [Dealt(rows[0], 0.0)] * (size - len(real))


class TrainingBatches:
    """A rank's forward passes over one epoch after another; what torch's DataLoader takes as its batch sampler."""

    def __init__(self, order: Callable[[int], Sequence[int]], rows: int, split: BatchSplit, rank: int):
        self._order, self._rows, self._split, self._rank = order, rows, split, rank
        self._epoch = 0

    @property
    def batch_sampler(self) -> "TrainingBatches":
        """transformers' Trainer tells the epoch to what it finds here."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(self._rows, self._split.batch)
        return full * self._split.accumulation + math.ceil(rest / (self._split.microbatch * self._split.ranks))

    def __iter__(self) -> Iterator[list[Dealt]]:
        order, size = list(self._order(self._epoch)), self._split.batch
        for start in range(0, len(order), size):
            yield from deal(order[start : start + size], self._split, self._rank)


class EvaluationBatches:
    """Forward passes of `size` neighbours in the file's order, dealt in turn; a filler where there is none left."""

    def __init__(self, rows: int, size: int, ranks: int, rank: int):
        self._rows, self._size, self._ranks, self._rank = rows, size, ranks, rank

    def __len__(self) -> int:
        return math.ceil(self._rows / (self._size * self._ranks))

    def __iter__(self) -> Iterator[list[Dealt]]:
        for turn in range(len(self)):
            start = (turn * self._ranks + self._rank) * self._size
            rows = range(start, min(start + self._size, self._rows))
            yield [Dealt(index, 1 / len(rows)) for index in rows] or [Dealt(0, 0.0)]


class _Weighted(Dataset):
    """Rows with the weight at which they were dealt."""

    def __init__(self, rows: Any):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, dealt: Dealt) -> dict[str, Any]:
        return {**self._rows[dealt.index], WEIGHT: dealt.weight}


def weights(rows: Sequence[dict[str, Any]]) -> torch.Tensor:
    """The weights of dealt rows, float32 [B]."""
    return torch.tensor([row[WEIGHT] for row in rows], dtype=torch.float32)


def loader(rows: Any, batches: Any, collate: Callable[[list[dict[str, Any]]], Any]) -> DataLoader:
    """Batches as a trainer reads them."""
    return DataLoader(_Weighted(rows), batch_sampler=batches, collate_fn=collate)


def epoch_order(rows: Any, seed: int, batch: int, grouped: bool) -> Callable[[int], Sequence[int]]:
    """From an epoch to its order of rows, which is that of transformers' Trainer on one rank."""

    def shuffled(epoch: int) -> Sequence[int]:
        generator = torch.Generator().manual_seed(seed + epoch)
        if not grouped:
            return torch.randperm(len(rows), generator=generator).tolist()
        return list(LengthGroupedSampler(batch, lengths=list(rows["length"]), generator=generator))

    return shuffled
