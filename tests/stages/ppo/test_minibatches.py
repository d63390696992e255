"""How a rollout is cut into minibatches."""

import pytest
import torch

from stages.ppo.minibatches import minibatches


@pytest.mark.parametrize(("count", "size"), [(16, 4), (16, 16), (12, 6), (64, 32)])
def test_an_epoch_has_each_row_once(count, size):
    found = minibatches(3, 10, count, size)
    assert [len(rows) for rows in found] == [size] * (count // size)
    assert sorted(torch.cat(found).tolist()) == list(range(count))


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_every_rank_has_an_equal_share_of_its_neighbouring_rows_in_each_minibatch(ranks):
    for rows in minibatches(3, 10, 64, 16):
        assert torch.bincount(rows // (64 // ranks)).tolist() == [16 // ranks] * ranks


def test_the_order_follows_from_seed_and_epoch():
    assert torch.equal(torch.stack(minibatches(3, 10, 64, 16)), torch.stack(minibatches(3, 10, 64, 16)))
    for other in (minibatches(4, 10, 64, 16), minibatches(3, 11, 64, 16)):
        assert not torch.equal(torch.stack(minibatches(3, 10, 64, 16)), torch.stack(other))
