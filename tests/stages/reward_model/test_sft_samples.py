"""Which prompts are sampled from, for how long, and that what is drawn depends on nothing else."""

from pathlib import Path

import pytest

from stages.render import Rendered
from stages.reward_model.pairs import Pair
from stages.reward_model.sft_samples import drawn, prompts_with_room
from stages.rollout import Sampler
from tests.toy_models import EOS, PAD, toy_lm


def pair(prompt: list[int], chosen: int, rejected: int) -> Pair:
    return Pair(Rendered(prompt, [5] * chosen), Rendered(prompt, [6] * rejected))


def test_different_prompts_are_continued_for_as_long_as_the_longest_answer():
    pairs = [pair([1, 7], 3, 4), pair([1, 7], 2, 9), pair([1, 8, 8], 1, 1)]
    assert prompts_with_room(pairs, 64) == ([(1, 7), (1, 8, 8)], 9)


def test_prompts_without_room_for_that_are_passed_over():
    pairs = [pair([1] * 10, 2, 1), pair([1] * 4, 8, 1)]
    assert prompts_with_room(pairs, 12) == ([(1, 1, 1, 1)], 8)


def test_where_no_prompt_has_room_the_shortest_decides():
    pairs = [pair([1] * 9, 3, 3), pair([1] * 4, 7, 7), pair([1] * 6, 6, 6)]
    assert prompts_with_room(pairs, 12) == ([(1,) * 4], 7)
    assert prompts_with_room([pair([1] * 9, 3, 3), pair([1] * 10, 2, 2)], 12) == ([(1,) * 9], 3)


def test_of_many_prompts_64_at_even_distances_are_taken_and_samples_are_short():
    pairs = [pair([1, number], 300, 300) for number in range(128)]
    prompts, new_tokens = prompts_with_room(pairs, 1024)
    assert prompts == [(1, number) for number in range(0, 128, 2)]
    assert new_tokens == 256


@pytest.mark.parametrize("batch_size", [2, 5])
def test_a_sample_depends_on_its_place_alone_and_ends_with_the_stop_token_or_the_limit(batch_size: int, tmp_path: Path):
    lm = toy_lm("llama", eos_token_id=EOS)
    stops = (EOS, 9, 17, 30)
    sampler = Sampler(stop_ids=stops, pad_id=PAD, max_new_tokens=16, temperature=1.0, seed=3)
    prompts = [(1, 5 + number) for number in range(5)]
    samples = drawn(sampler, lm, prompts, batch_size)
    alone = [drawn(sampler, lm, prompts[:1], 1).rows[0], *drawn(sampler, lm, prompts, 5).rows[1:]]
    assert [row.ids for row in samples.rows] == [row.ids for row in alone]
    assert [tuple(row.prompt_ids) for row in samples.rows] == prompts
    ended = [row.completion_ids[-1] in stops for row in samples.rows]
    assert samples.unfinished == ended.count(False)
    assert all(len(row.completion_ids) == 16 for row, end in zip(samples.rows, ended, strict=True) if not end)
    assert any(ended), "a sampler that never stops proves nothing"
