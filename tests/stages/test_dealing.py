"""How the rows of a batch are dealt to ranks and forward passes."""

from itertools import chain

import pytest
import torch
from datasets import Dataset
from transformers.trainer_pt_utils import LengthGroupedSampler

from stages.batch_split import BatchSplit
from stages.dealing import Dealt, EvaluationBatches, TrainingBatches, deal, epoch_order

SPLITS = [BatchSplit(8, 1, 1), BatchSplit(2, 4, 1), BatchSplit(4, 1, 2), BatchSplit(2, 2, 2), BatchSplit(1, 2, 4)]


def epoch(split: BatchSplit, rows: int, number: int = 0) -> list[list[list[Dealt]]]:
    """The forward passes of each rank."""
    order = epoch_order(range(rows), seed=3, batch=split.batch, grouped=False)
    ranks = [TrainingBatches(order, rows, split, rank) for rank in range(split.ranks)]
    for rank in ranks:
        rank.set_epoch(number)
    return [list(rank) for rank in ranks]


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("rows", [16, 19, 9, 8, 3, 1])
def test_every_row_counts_once_and_all_ranks_make_the_same_passes(split: BatchSplit, rows: int):
    ranks = epoch(split, rows)
    counted = sorted(d.index for d in chain(*chain(*ranks)) if d.weight)
    assert counted == list(range(rows))
    sampler = TrainingBatches(lambda _: range(rows), rows, split, 0)
    assert [len(passes) for passes in ranks] == [len(sampler)] * split.ranks
    for passes in zip(*ranks, strict=True):
        assert len({len(rows_of_pass) for rows_of_pass in passes}) == 1
        assert 1 <= len(passes[0]) <= split.microbatch


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("rows", [8, 7, 3, 1])
def test_the_weighted_sum_over_passes_and_ranks_is_the_mean_of_the_batch(split: BatchSplit, rows: int):
    values = torch.randn(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ranks = [list(deal(range(rows), split, rank)) for rank in range(split.ranks)]
    passes = len(ranks[0])
    sums = [sum(d.weight * values[d.index] for d in chain(*rank)) / passes for rank in ranks]
    assert float(sum(sums) / split.ranks) == pytest.approx(float(values.mean()), rel=1e-12)


def test_a_full_batch_gives_each_rank_its_neighbours_with_equal_weight():
    first, second = ([[d.index for d in p] for p in deal(range(8), BatchSplit(2, 2, 2), rank)] for rank in (0, 1))
    assert (first, second) == ([[0, 1], [2, 3]], [[4, 5], [6, 7]])
    assert {d.weight for p in deal(range(8), BatchSplit(2, 2, 2), 0) for d in p} == {0.5}


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_the_batches_of_an_epoch_are_those_of_one_rank(split: BatchSplit):
    for number in (0, 1):
        expected = epoch_order(range(19), 3, 8, grouped=False)(number)
        ranks = epoch(split, 19, number)
        first_batch = chain(*(chain(*passes[: split.accumulation]) for passes in ranks))
        assert sorted(d.index for d in first_batch) == sorted(expected[:8])
    assert epoch_order(range(19), 3, 8, False)(0) != epoch_order(range(19), 3, 8, False)(1)


def test_rows_of_similar_length_meet_as_in_transformers_for_the_whole_batch():
    lengths = torch.randint(1, 50, (600,), generator=torch.Generator().manual_seed(1)).tolist()
    rows = Dataset.from_list([{"length": n} for n in lengths])
    expected = list(LengthGroupedSampler(8, lengths=lengths, generator=torch.Generator().manual_seed(5)))
    assert epoch_order(rows, seed=3, batch=8, grouped=True)(2) == expected
    assert epoch_order(rows, seed=3, batch=4, grouped=True)(2) != expected  # half a batch would group otherwise


def test_evaluation_deals_whole_batches_in_turn_and_fills_up_with_rows_that_do_not_count():
    ranks = [list(EvaluationBatches(rows=5, size=2, ranks=2, rank=rank)) for rank in (0, 1)]
    assert [[d.index for d in p if d.weight] for p in ranks[0]] == [[0, 1], [4]]
    assert [[d.index for d in p if d.weight] for p in ranks[1]] == [[2, 3], []]
    assert len(ranks[1][1]) == 1
    assert len(EvaluationBatches(5, 2, 2, 0)) == 2
