"""Sampling: exact frequencies, reproducible row by row, and deaf to what a model's folder says about generation."""

import pytest
import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from stages.models.load import neutral_generation_config
from stages.rollout import InverseCDF, Sampler, completion_mask, left_pad, uniforms
from tests.toy_models import ARCHITECTURES, EOS, PAD, VOCABULARY, random_ids, toy_lm, toy_tokenizer

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def sampler(**changes) -> Sampler:
    return Sampler(**{"stop_ids": [EOS], "pad_id": PAD, "max_new_tokens": 8, "temperature": 1.0, "seed": 0} | changes)


def forced(lm: nn.Module, **logits: float) -> nn.Module:
    """The model with constant logits: those given as t<id>, else 0."""
    lm.lm_head.weight.data.zero_()
    lm.lm_head.bias = nn.Parameter(torch.zeros(VOCABULARY))
    for name, value in logits.items():
        lm.lm_head.bias.data[int(name[1:])] = value
    return lm


def drawn(logits: Tensor, numbers: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Tokens and log-probabilities that InverseCDF chooses at given random numbers [N]."""
    draw = InverseCDF(numbers.unsqueeze(1), temperature)
    scores = draw(torch.zeros(len(numbers), 1, dtype=torch.long), logits.expand(len(numbers), -1))
    return scores.argmax(-1), draw.logprobs[0]


def test_random_numbers_are_a_function_of_seed_and_episode():
    together = uniforms(7, [3, 1000, 5], 6)
    for row, episode in enumerate((3, 1000, 5)):
        assert torch.equal(together[row], uniforms(7, [episode], 6)[0])
        assert torch.equal(together[row, :4], uniforms(7, [episode], 4)[0])
    assert not torch.equal(uniforms(7, [3], 6), uniforms(8, [3], 6))
    assert together.dtype == torch.float64
    assert together.min() >= 0 and together.max() < 1


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_are_the_exact_probabilities(temperature: float):
    logits = torch.tensor([0.0, 1.0, -2.0, 0.5, -torch.inf, 2.0])
    tokens, _ = drawn(logits, uniforms(0, range(20_000), 1)[:, 0], temperature)
    p = (logits / temperature).softmax(-1).double()
    counts = torch.bincount(tokens, minlength=6)
    assert counts[4] == 0
    expected = 20_000 * p[p > 0]
    chi_square = ((counts[p > 0] - expected).square() / expected).sum()
    assert chi_square < 18.47  # 99.9 % quantile for 4 degrees of freedom


def test_sampled_logprobs_are_those_of_the_softmax_at_the_temperature():
    logits = torch.tensor([0.0, 1.0, -2.0, 0.5])
    tokens, logprobs = drawn(logits, uniforms(0, range(50), 1)[:, 0], 0.5)
    assert torch.allclose(logprobs, (logits / 0.5).log_softmax(-1)[tokens], atol=1e-6)


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-24, 1 - 2**-26, 1 - 2**-53])
@pytest.mark.parametrize("holes", [[0], [3], [0, 1], [2, 3], [1, 2]])
def test_a_token_of_probability_zero_is_never_drawn(number: float, holes: list[int]):
    logits = torch.zeros(4)
    logits[holes] = -torch.inf
    tokens, logprobs = drawn(logits, torch.tensor([number], dtype=torch.float64))
    assert tokens.item() not in holes
    assert logprobs.isfinite().all()


def test_a_draw_is_the_token_in_whose_interval_the_number_lies():
    numbers = torch.tensor([0.0, 0.24, 0.26, 0.49, 0.51, 0.76, 0.99], dtype=torch.float64)
    assert drawn(torch.zeros(4), numbers)[0].tolist() == [0, 0, 1, 1, 2, 3, 3]


def test_prompts_are_aligned_at_their_last_token():
    ids, mask = left_pad([[7, 8, 9], [5]], PAD)
    assert ids.tolist() == [[7, 8, 9], [PAD, PAD, 5]]
    assert mask.tolist() == [[True] * 3, [False, False, True]]


@each_architecture
def test_a_completion_does_not_depend_on_its_batch(architecture: str):
    lm, draw = toy_lm(architecture), sampler()
    prompts = [random_ids(n, seed=n).tolist() for n in (6, 2, 6, 3, 9)]
    together = draw(lm, prompts, [10, 11, 12, 13, 14])
    for row, prompt in enumerate(prompts):
        alone = draw(lm, [prompt], [10 + row])
        assert alone.ids.shape[1] == len(prompt) + 8
        assert torch.equal(alone.completions[0], together.completions[row])
        assert torch.equal(alone.mask[0], together.mask[row])
        assert torch.equal(alone.ids[0, : len(prompt)], torch.tensor(prompt))


def test_the_same_seed_gives_the_same_tokens_and_another_gives_others():
    lm, prompts = toy_lm("llama"), [random_ids(4, seed=i).tolist() for i in range(6)]
    first, again, other = (sampler(seed=s)(lm, prompts, range(6)).completions for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_global_generator_of_torch_is_not_touched():
    lm = toy_lm("llama")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    sampler()(lm, [[7, 8]], [0])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stop_token_drawn_first_is_a_completion_of_one_token():
    r = sampler()(forced(toy_lm("llama"), **{f"t{EOS}": 100.0}), [[7, 8], [9]], [0, 1])
    assert r.completions.tolist() == [[EOS] + [PAD] * 7] * 2
    assert r.mask.tolist() == [[True] + [False] * 7] * 2
    assert r.stopped.tolist() == [True, True]
    assert r.sampled_logprobs.abs().max() < 1e-6
    assert r.attention_mask.tolist() == [[True, True, True] + [False] * 7, [False, True, True] + [False] * 7]


def test_a_completion_without_a_stop_token_is_attended_to_its_end():
    r = sampler()(forced(toy_lm("llama"), t9=100.0), [[7, 8]], [0])
    assert r.completions.tolist() == [[9] * 8]
    assert r.mask.all()
    assert r.stopped.tolist() == [False]


def test_every_stop_id_stops():
    lm = forced(toy_lm("llama"), t9=50.0, t11=50.0, t2=50.0, t20=50.0)
    r = sampler(stop_ids=[EOS, 9, 11])(lm, [[7]] * 40, range(40))
    last = r.completions.gather(1, (r.mask.sum(1) - 1).unsqueeze(1)).squeeze(1)
    assert set(last[r.stopped].tolist()) == {EOS, 9, 11}
    assert r.mask.equal(completion_mask(r.completions, [EOS, 9, 11]))
    inside = torch.where(r.mask, r.completions, 20).scatter(1, (r.mask.sum(1) - 1).unsqueeze(1), 20)
    assert inside.eq(20).all()
    assert r.stopped.sum() >= 39


def test_the_padding_id_may_be_the_stop_id():
    lm = forced(toy_lm("llama"), t2=50.0, t20=51.0)
    plain, equal = (sampler(pad_id=pad)(lm, [[7, 8], [9]] * 5, range(10)) for pad in (PAD, EOS))
    assert torch.equal(plain.mask, equal.mask)
    assert torch.equal(plain.stopped, equal.stopped)
    assert torch.equal(plain.prompt_mask, equal.prompt_mask)
    assert torch.equal(plain.sampled_logprobs, equal.sampled_logprobs)
    assert torch.equal(plain.completions[plain.mask], equal.completions[equal.mask])
    assert equal.mask.sum(1).unique().numel() > 1


def test_log_probabilities_outside_the_mask_are_zero():
    r = sampler()(toy_lm("gpt2"), [random_ids(3, seed=i).tolist() for i in range(8)], range(8))
    assert r.sampled_logprobs[~r.mask].eq(0).all()
    assert r.sampled_logprobs[r.mask].lt(0).all()


def test_rows_can_be_chosen():
    r = sampler()(toy_lm("llama"), [[7, 8], [9], [5, 6, 7]], range(3))
    part = r[torch.tensor([2, 0])]
    assert len(part) == 2
    assert torch.equal(part.ids, r.ids[[2, 0]])
    assert torch.equal(part.stopped, r.stopped[[2, 0]])


OFF_POLICY = {
    "top_k": {"do_sample": True, "top_k": 1},
    "top_p": {"do_sample": True, "top_p": 0.01},
    "temperature": {"do_sample": True, "temperature": 0.01},
    "min_p": {"do_sample": True, "min_p": 0.9},
    "typical_p": {"do_sample": True, "typical_p": 0.01},
    "repetition_penalty": {"repetition_penalty": 5.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "min_new_tokens": {"min_new_tokens": 8},
    "min_length": {"min_length": 20},
    "suppress_tokens": {"suppress_tokens": [EOS, *range(10, 20)]},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(10, 30))},
    "bad_words_ids": {"bad_words_ids": [[t] for t in range(10, 20)]},
    "sequence_bias": {"sequence_bias": [[[t], -10.0] for t in range(10, 20)]},
    "forced_eos_token_id": {"forced_eos_token_id": EOS},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (1, 3.0)},
    "another stop token": {"eos_token_id": list(range(4, 20))},
    "max_length": {"max_length": 5},
    "num_beams": {"num_beams": 3},
    "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 4},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3},
    "stop_strings": {"stop_strings": ["a"]},
}


@pytest.mark.parametrize("setting", OFF_POLICY)
def test_the_models_own_generation_config_has_no_influence(setting: str):
    lm, prompts = toy_lm("llama"), [random_ids(4, seed=i).tolist() for i in range(6)]
    expected = sampler()(lm, prompts, range(6))
    lm.generation_config = GenerationConfig(**{"eos_token_id": EOS, "pad_token_id": PAD} | OFF_POLICY[setting])
    found = sampler()(lm, prompts, range(6))
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.sampled_logprobs, expected.sampled_logprobs)
    assert torch.equal(found.stopped, expected.stopped)


def test_the_neutral_generation_config_samples_the_same():
    lm, prompts = toy_lm("llama"), [random_ids(4, seed=i).tolist() for i in range(6)]
    expected = sampler()(lm, prompts, range(6))
    lm.generation_config = neutral_generation_config((EOS,), toy_tokenizer())
    assert torch.equal(sampler()(lm, prompts, range(6)).ids, expected.ids)
