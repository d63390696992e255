"""Log-probabilities, values and scores, as PPO and the reward model read them. Comments number the invariants."""

import math

import pytest
import torch
from peft import TaskType
from torch import Tensor
from transformers import PreTrainedModel

from stages.models import heads
from stages.models.adapters import attach_adapter
from stages.models.config import TuningConfig
from stages.models.heads import PolicyModel, ScoreModel
from stages.models.load import disable_dropout
from stages.models.peft_types import peft_config
from stages.models.scalar import with_scalar_head
from stages.models.virtual_tokens import counted_positions
from stages.rollout import Sampler, completion_mask
from tests.toy_models import ARCHITECTURES, EOS, PAD, VOCABULARY, noise, random_ids, toy_lm

TINY = 1e-5  # float32 rounding of a forward in another shape
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def scorer(architecture: str, seed: int = 0) -> ScoreModel:
    """A scalar model with a random head."""
    classifier = with_scalar_head(toy_lm(architecture, seed), PAD)
    torch.nn.init.normal_(classifier.score.weight, generator=torch.Generator().manual_seed(seed))
    return ScoreModel(classifier).eval()


def sequence(
    prompt: int = 5, completion: int = 4, *, left: int = 0, right: int = 0, pad: int = PAD
) -> tuple[Tensor, Tensor, Tensor]:
    """One sequence [1, left+P+T+right], its attention mask, and its completion mask [1, T+right]."""
    ids = torch.full((1, left + prompt + completion + right), pad)
    ids[0, left : left + prompt + completion] = random_ids(prompt + completion)
    attended = torch.zeros(ids.shape, dtype=torch.bool)
    attended[0, left : left + prompt + completion] = True
    return ids, attended, attended[:, left + prompt :]


def causal_logprobs(lm: PreTrainedModel, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each next token by the model's own forward, without padding: [B, S-1]."""
    logprobs = (lm(ids).logits.float() / temperature).log_softmax(-1)
    return logprobs[:, :-1].gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)


def test_positions_count_from_the_first_attended_token():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]], dtype=torch.bool)
    assert counted_positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


@each_architecture
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@torch.no_grad()
def test_the_sampler_and_the_scorer_agree_on_every_sampled_token(architecture: str, temperature: float):  # 2
    lm = toy_lm(architecture)
    sampler = Sampler(stop_ids=[EOS], pad_id=PAD, max_new_tokens=8, temperature=temperature, seed=0)
    prompts = [random_ids(n, seed=n).tolist() for n in (2, 5, 9, 3)]
    r = sampler(lm, prompts, range(4))
    logprobs = PolicyModel(lm, temperature)(r.ids, r.attention_mask, r.mask).logprobs
    assert (logprobs - r.sampled_logprobs).abs().max() <= TINY
    if temperature != 1:
        without = PolicyModel(lm, 1.0)(r.ids, r.attention_mask, r.mask).logprobs
        assert (without - r.sampled_logprobs).abs().max() > 0.5


@each_architecture
@torch.no_grad()
def test_logprobs_are_those_of_the_models_own_forward(architecture: str):
    lm = toy_lm(architecture)
    ids, attended, mask = sequence()
    assert (
        PolicyModel(lm, 0.7)(ids, attended, mask).logprobs - causal_logprobs(lm, ids, 0.7)[:, -4:]
    ).abs().max() <= TINY


@each_architecture
@pytest.mark.parametrize("padding", [{"left": 1}, {"left": 7}, {"right": 6}, {"left": 3, "right": 2}])
@torch.no_grad()
def test_padding_on_either_side_changes_nothing(architecture: str, padding: dict[str, int]):  # 3, 4
    policy, scalar = PolicyModel(toy_lm(architecture)), scorer(architecture)
    plain, padded = sequence(), sequence(**padding)
    width = padded[2].shape[1]
    for a, b in zip(policy(*plain), policy(*padded), strict=True):
        assert (a - b[:, :4]).abs().max() <= TINY
        assert b[:, 4:].eq(0).all()
    values = scalar.values(*padded[:2], width)[:, :4]
    assert (scalar.values(*plain[:2], 4) - values).abs().max() <= TINY
    assert (scalar.scores(*plain[:2]) - scalar.scores(*padded[:2])).abs().max() <= TINY


@each_architecture
def test_padding_wider_changes_no_gradient(architecture: str):  # 4
    gradients = []
    for padding in ({}, {"left": 4, "right": 5}):
        lm = toy_lm(architecture)
        PolicyModel(lm)(*sequence(**padding)).logprobs.sum().backward()
        gradients.append([p.grad for p in lm.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=2e-5)


@each_architecture
@pytest.mark.parametrize("other", [EOS, 7, VOCABULARY - 1])
@torch.no_grad()
def test_the_id_in_padded_places_has_no_effect_at_all(architecture: str, other: int):  # 5, 6
    policy, scalar = PolicyModel(toy_lm(architecture)), scorer(architecture)
    results = []
    for pad in (PAD, other):
        ids, attended, mask = sequence(left=3, right=2, pad=pad)
        values = scalar.values(ids, attended, mask.shape[1])
        results.append([*policy(ids, attended, mask), values[mask], scalar.scores(ids, attended)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_masks_are_the_same_when_the_padding_id_is_the_stop_id():  # 6
    tokens = torch.tensor([[7, 8, EOS, PAD, PAD], [EOS, PAD, PAD, PAD, PAD], [7, 8, 9, 10, 11]])
    same = torch.where(tokens == PAD, EOS, tokens)
    expected = [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert completion_mask(tokens, [EOS]).int().tolist() == completion_mask(same, [EOS]).int().tolist() == expected


@each_architecture
@torch.no_grad()
def test_special_ids_inside_a_prompt_keep_their_attention(architecture: str):  # 7
    lm = toy_lm(architecture)
    ids, attended, mask = sequence(left=2)
    ids[0, 3], ids[0, 4] = EOS, PAD
    expected = causal_logprobs(lm, ids[:, 2:])[:, -4:]
    assert (PolicyModel(lm)(ids, attended, mask).logprobs - expected).abs().max() <= TINY


def test_each_token_is_predicted_from_the_hidden_state_just_before_it():  # 9
    lm = toy_lm("llama")
    embeddings = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    lm.model.embed_tokens.forward = lambda ids: embeddings
    policy, (ids, attended, mask) = PolicyModel(lm), sequence(prompt=5, completion=4)
    for t in range(4):
        (gradient,) = torch.autograd.grad(policy(ids, attended, mask).logprobs[0, t], embeddings)
        touched = gradient[0].abs().sum(1) > 0
        assert touched.tolist() == [column <= 5 - 1 + t for column in range(9)]


def test_the_slice_agrees_with_finite_differences_of_the_output_bias():  # 9
    lm = toy_lm("llama").double()
    lm.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY, dtype=torch.float64))
    ids, attended, mask = sequence(prompt=2, completion=1)
    policy = PolicyModel(lm)
    policy(ids, attended, mask).logprobs.sum().backward()
    probabilities = lm(ids).logits[0, 1].softmax(-1)
    expected = torch.nn.functional.one_hot(ids[0, 2], VOCABULARY) - probabilities
    assert torch.allclose(lm.lm_head.bias.grad, expected.double(), atol=1e-6)


@each_architecture
@torch.no_grad()
def test_tokens_after_the_stop_token_change_nothing(architecture: str):  # 10
    policy, scalar = PolicyModel(toy_lm(architecture)), scorer(architecture)
    ids, attended, mask = sequence(prompt=5, completion=3, right=3)
    other = ids.clone()
    other[:, 8:] = random_ids(1, 3, seed=9)
    assert torch.equal(policy(ids, attended, mask).logprobs, policy(other, attended, mask).logprobs)
    assert torch.equal(scalar.values(ids, attended, 6)[mask], scalar.values(other, attended, 6)[mask])
    assert torch.equal(scalar.scores(ids, attended), scalar.scores(other, attended))


@each_architecture
@torch.no_grad()
def test_dropout_is_off_in_train_mode_too(architecture: str):  # 13
    lm = disable_dropout(toy_lm(architecture)).requires_grad_(False)
    adapted = attach_adapter(lm, peft_config(TuningConfig(method="lora", r=2), lm, TaskType.CAUSAL_LM))
    noise(adapted, only="lora_")
    policy = PolicyModel(adapted).train()
    first, second = (policy(*sequence()).logprobs for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, policy.eval()(*sequence()).logprobs)


@each_architecture
@torch.no_grad()
def test_entropy_is_log_v_for_uniform_logits(architecture: str):  # 32
    lm = toy_lm(architecture)
    lm.get_output_embeddings().weight.zero_()
    scores = PolicyModel(lm)(*sequence())
    assert torch.allclose(scores.entropy, torch.full((1, 4), math.log(VOCABULARY)), atol=1e-6)
    assert torch.allclose(scores.logprobs, torch.full((1, 4), -math.log(VOCABULARY)), atol=1e-6)


@torch.no_grad()
def test_entropy_is_zero_for_one_hot_logits():  # 32
    lm = toy_lm("llama")
    lm.lm_head.weight.mul_(0.0)
    lm.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY))
    lm.lm_head.bias[7] = 1e4
    ids, attended, mask = sequence()
    ids[:, 5:] = 7
    scores = PolicyModel(lm)(ids, attended, mask)
    assert scores.entropy.tolist() == [[0.0] * 4]
    assert scores.logprobs.tolist() == [[0.0] * 4]


@torch.no_grad()
def test_entropy_is_that_of_the_distribution_at_the_temperature():  # 32
    lm, (ids, attended, mask) = toy_lm("gpt2"), sequence()
    p = (lm(ids).logits[:, 4:-1] / 0.7).softmax(-1)
    assert torch.allclose(PolicyModel(lm, 0.7)(ids, attended, mask).entropy, -(p * p.log()).sum(-1), atol=1e-5)
    assert PolicyModel(lm, 0.7)(ids, attended, mask, with_entropy=False).entropy.eq(0).all()


@each_architecture
@torch.no_grad()
def test_bfloat16_products_still_give_float32_logprobs(architecture: str):  # 34
    policy, ids = PolicyModel(toy_lm(architecture), compute="bfloat16"), sequence()
    exact = PolicyModel(toy_lm(architecture))(*ids).logprobs
    scores = policy(*ids)
    assert scores.logprobs.dtype == scores.entropy.dtype == torch.float32
    gap = (scores.logprobs - exact).abs()
    assert 0 < gap.max() < 0.2
    # A log-softmax in bfloat16 would leave values on its coarse grid.
    assert not torch.equal(scores.logprobs, scores.logprobs.bfloat16().float())


@each_architecture
@torch.no_grad()
def test_bfloat16_products_still_give_float32_scores(architecture: str):  # 34
    scalar = scorer(architecture)
    exact = scalar.scores(*sequence()[:2])
    scalar.compute = "bfloat16"
    assert scalar.scores(*sequence()[:2]).dtype == torch.float32
    assert 0 < (scalar.scores(*sequence()[:2]) - exact).abs().max() < 0.5


SCALED = {
    "gemma2": {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 3.0, "sliding_window": 64},
    "gemma3_text": {"final_logit_softcapping": 2.0},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0},
}


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *SCALED])
@torch.no_grad()
def test_logits_are_the_models_own(architecture: str):
    lm = toy_lm(architecture, **SCALED.get(architecture, {}))
    ids, attended, _ = sequence()
    hidden = heads.hidden_states(lm, ids, attended)
    assert torch.allclose(PolicyModel(lm).logits(hidden), lm(ids).logits, atol=1e-5)
    if architecture in SCALED:  # the scaling is not the identity here
        assert not torch.allclose(lm.get_output_embeddings()(hidden), lm(ids).logits, atol=1e-2)


@each_architecture
def test_the_size_of_logit_chunks_changes_nothing(architecture: str, monkeypatch: pytest.MonkeyPatch):
    rows = sequence(left=2, right=2), sequence(right=4), sequence(prompt=6, completion=5, left=1, right=1)
    ids, attended = (torch.cat([row[i] for row in rows]) for i in (0, 1))
    mask = attended[:, -6:]
    results = []
    for chunk in (512, 3):
        monkeypatch.setattr(heads, "CHUNK_TOKENS", chunk)
        lm = toy_lm(architecture)
        scores = PolicyModel(lm, 0.7)(ids, attended, mask)
        (scores.logprobs.sum() + scores.entropy.square().sum()).backward()
        results.append((scores, [p.grad for p in lm.parameters() if p.grad is not None]))
    (one, one_grads), (many, many_grads) = results
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one, many, strict=True))
    assert all((a - b).abs().max() <= 5e-6 * a.abs().max() for a, b in zip(one_grads, many_grads, strict=True))


@torch.no_grad()
def test_scores_are_centred_and_standardised():
    raw = scorer("llama")
    centred = ScoreModel(raw.classifier, mean=0.5, std=2.0)
    ids, attended, _ = sequence()
    assert torch.allclose(centred.scores(ids, attended), (raw.scores(ids, attended) - 0.5) / 2, atol=1e-6)


@torch.no_grad()
def test_the_value_of_the_state_after_the_last_token_is_the_score():
    scalar, (ids, attended, _) = scorer("gpt2"), sequence(left=2)
    extended = torch.cat([ids, torch.tensor([[9]])], 1), torch.cat([attended, torch.tensor([[True]])], 1)
    assert (scalar.values(*extended, 1)[:, 0] - scalar.scores(ids, attended)).abs().max() <= TINY
