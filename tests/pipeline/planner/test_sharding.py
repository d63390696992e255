"""Bytes under ZeRO: literals by hand, and what must hold whatever the sizes."""

import pytest

from pipeline.planner.sharding import Split, gathered, in_flight, sent_by_reading, sent_by_training, share


def test_one_rank_pays_sixteen_bytes_for_a_trained_number():
    kept = share(1000, 500.0, Split())
    assert (kept.weights, kept.gradients, kept.optimizer, kept.host) == (4500, 4000, 8000, 0)


@pytest.mark.parametrize(
    "zero, expected",
    [(0, (4400, 4000, 8000)), (1, (4400, 4000, 3000)), (2, (4400, 1000, 3000)), (3, (1100, 1000, 2000))],
)
def test_four_ranks_keep_what_each_stage_leaves_them(zero, expected):
    kept = share(1000, 400.0, Split(4, zero))
    assert (kept.weights, kept.gradients, kept.optimizer) == expected


def test_offloading_moves_bytes_to_the_host():
    optimizer = share(1000, 400.0, Split(4, 2, offload_optimizer=True))
    assert (optimizer.weights, optimizer.gradients, optimizer.optimizer, optimizer.host) == (4400, 0, 0, 4000)
    both = share(1000, 400.0, Split(4, 3, offload_optimizer=True, offload_parameters=True))
    assert (both.weights, both.gradients, both.optimizer, both.host) == (0, 0, 0, 5100)


@pytest.mark.parametrize("ranks", [1, 3, 64])
def test_partitions_of_all_ranks_are_the_whole(ranks):
    whole, part = share(10_000, 3000.0, Split(ranks, 0)), share(10_000, 3000.0, Split(ranks, 3))
    assert part.weights * ranks == pytest.approx(whole.weights)
    assert part.gradients * ranks == pytest.approx(whole.gradients)
    assert part.optimizer * ranks == pytest.approx(whole.optimizer)


@pytest.mark.parametrize("frozen", [0.0, 2000.0])
def test_a_higher_stage_never_keeps_more(frozen):
    def kept(zero: int) -> float:
        found = share(1000, frozen, Split(4, zero))
        return found.weights + found.gradients + found.optimizer

    assert [kept(zero) for zero in range(4)] == sorted((kept(zero) for zero in range(4)), reverse=True)


def test_a_rank_alone_gathers_nothing_unless_its_weights_lie_with_the_host():
    found = [gathered(4000.0, Split(ranks, 3)) for ranks in (1, 2)]
    assert [*found, gathered(4000.0, Split(1, 3, offload_parameters=True))] == [0, 4000, 4000]


def test_communication_is_that_of_the_zero_paper():
    """Two volumes of trained bytes for stages 0 to 2 and three for stage 3, times (N - 1) / N."""
    sent = [sent_by_training(1000, 0.0, Split(4, zero, all_reduces=False), 1) for zero in range(4)]
    assert sent == [6000, 6000, 6000, 9000]


def test_deepspeed_sends_gradients_twice_by_default():
    sent = [sent_by_training(1000, 0.0, Split(4, zero), 1) for zero in range(4)]
    assert sent == [6000, 9000, 9000, 9000]


def test_accumulation_costs_nothing_before_stage_two():
    sent = [sent_by_training(1000, 800.0, Split(4, zero, all_reduces=False), 5) for zero in range(4)]
    assert sent == [6000, 6000, 18_000, 5 * (3 * 4000 + 2 * 800) * 3 / 4]
    assert [sent_by_training(1000, 800.0, Split(4, zero), 5) for zero in (1, 2)] == [9000, 11 * 4000 * 3 / 4]


def test_frozen_weights_are_sent_under_stage_three_alone():
    assert [sent_by_reading(800.0, Split(4, zero), 2) for zero in range(4)] == [0, 0, 0, 1200]


def test_one_rank_sends_nothing():
    assert {sent_by_training(1000, 800.0, Split(1, zero), 5) for zero in range(4)} == {0}
    assert sent_by_reading(800.0, Split(1, 3), 2) == 0


def test_buffers_are_as_large_as_deepspeed_makes_them_and_no_larger_than_the_model():
    assert in_flight(1000, 4000.0, Split(2, 1)) == 4000
    assert in_flight(1000, 4000.0, Split(2, 3)) == 4000 + 4000
    assert in_flight(8 * 10**9, 32e9, Split(2, 2)) == 2e9
    assert in_flight(8 * 10**9, 32e9, Split(2, 3)) == 2e9 + 4e9
