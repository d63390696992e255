"""A batch over ranks and forward passes."""

import pytest

from stages.base import InputError
from stages.batch_split import BatchSplit, split_batch


@pytest.mark.parametrize(
    ("batch", "microbatch", "ranks", "expected"),
    [
        (8, 8, 1, BatchSplit(8, 1, 1)),
        (8, 2, 1, BatchSplit(2, 4, 1)),
        (8, 8, 2, BatchSplit(4, 1, 2)),  # the same config on two ranks: each makes one pass over its half
        (16, 4, 2, BatchSplit(4, 2, 2)),
        (16, 16, 16, BatchSplit(1, 1, 16)),
    ],
)
def test_ranks_accumulation_and_microbatch_make_up_the_batch(batch, microbatch, ranks, expected):
    found = split_batch("sft", batch, microbatch, ranks)
    assert found == expected
    assert found.batch == batch


@pytest.mark.parametrize(
    ("batch", "microbatch", "ranks", "message"),
    [
        (9, 4, 2, "sft.batch_size 9 cannot be shared evenly by 2 ranks; fix: sft.batch_size=8 or 16"),
        (3, 4, 4, "sft.batch_size 3 cannot be shared evenly by 4 ranks; fix: sft.batch_size=4"),
        (
            12,
            4,
            2,
            "sft.batch_size 12 over 2 ranks is 6 rows each, no multiple of sft.microbatch_size 4; "
            "fix: sft.microbatch_size=3, or sft.batch_size=8 or 16",
        ),
    ],
)
def test_a_batch_that_does_not_divide_is_told_with_the_nearest_that_do(batch, microbatch, ranks, message):
    with pytest.raises(InputError) as error:
        split_batch("sft", batch, microbatch, ranks)
    assert str(error.value) == f"[BATCH02] {message}"
    told = message.partition("; fix: ")[2]
    for size in [int(word) for word in told.rpartition("batch_size=")[2].split(" or ")]:
        assert split_batch("sft", size, microbatch, ranks).batch == size
