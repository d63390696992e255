"""Replaying recorded hidden states gives the numbers of the full computation, bit for bit."""

import pytest
import torch
from peft import TaskType
from torch import Tensor

from stages.models.adapters import attach_adapter
from stages.models.config import TuningConfig
from stages.models.heads import PolicyModel, ScoreModel
from stages.models.peft_types import peft_config
from stages.models.roles import share
from stages.models.scalar import with_scalar_head
from stages.models.trunk import FrozenTrunk, NoTrunk, decoder_layers
from tests.toy_models import ARCHITECTURES, PAD, noise, random_ids, toy_lm

TUNING = TuningConfig(method="lora", r=2, alpha=4)
WIDTH = 4
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


class Roles:
    """Policy, reference and value model on one frozen base of three layers, adapters on the last."""

    def __init__(self, architecture: str):
        layers = {"n_layer": 3} if architecture == "gpt2" else {"num_hidden_layers": 3}
        base = toy_lm(architecture, **layers).requires_grad_(False)
        torch.manual_seed(1)
        policy = attach_adapter(share(base), peft_config(TUNING, base, TaskType.CAUSAL_LM, 2))
        value = attach_adapter(with_scalar_head(share(base), PAD), peft_config(TUNING, base, TaskType.SEQ_CLS, 2))
        for model in (policy, value):
            noise(model, only="lora_")
        noise(value, only="score.modules_to_save")
        self.policy, self.reference, self.value = PolicyModel(policy), PolicyModel(share(base)), ScoreModel(value)
        self.trunk = FrozenTrunk(2)
        self.lms = (policy, self.reference.lm, value)

    def attach(self) -> None:
        for lm in self.lms:
            self.trunk.attach(lm)


def rollout(rows: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [B, 9], attention mask, completion mask [B, 4]; left-padded prompts, right-padded completions."""
    ids = random_ids(rows, 9)
    attended = torch.ones(ids.shape, dtype=torch.bool)
    for i in range(rows):
        attended[i, : i % 4] = False
        attended[i, 9 - i % 3 :] = False
    return torch.where(attended, ids, PAD), attended, attended[:, -WIDTH:]


@each_architecture
@torch.no_grad()
def test_replayed_logprobs_and_values_equal_the_computed_ones(architecture: str):
    r, (ids, attended, mask) = Roles(architecture), rollout()
    expected = [*r.policy(ids, attended, mask), *r.reference(ids, attended, mask), r.value.values(ids, attended, WIDTH)]
    r.attach()
    r.trunk.begin(*ids.shape)
    parts = []
    for rows in (slice(0, 2), slice(2, 4), slice(4, 6)):
        with r.trunk.recording(rows):
            parts.append(r.reference(ids[rows], attended[rows], mask[rows]).logprobs)
    reference = torch.cat(parts)
    assert (reference - expected[2]).abs().max() <= 1e-5  # a smaller batch may round differently
    r.trunk.begin(*ids.shape)
    with r.trunk.recording():
        r.reference(ids, attended, mask)
    with r.trunk.replaying(slice(None)):
        found = [
            *r.policy(ids, attended, mask),
            *r.reference(ids, attended, mask),
            r.value.values(ids, attended, WIDTH),
        ]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@each_architecture
def test_replay_in_another_order_gives_the_same_numbers_and_gradients(architecture: str):
    r, (ids, attended, mask) = Roles(architecture), rollout()
    order = torch.tensor([4, 0, 5, 2, 1, 3])

    def run(rows: Tensor) -> list[Tensor]:
        """Outputs and adapter gradients, two rows at a time."""
        outputs = []
        for part in rows.split(2):
            with r.trunk.replaying(part) if recorded else NoTrunk().replaying(part):
                scores = r.policy(ids[part], attended[part], mask[part])
                values = r.value.values(ids[part], attended[part], WIDTH)
            (scores.logprobs.sum() + values.square().sum()).backward()
            outputs += [scores.logprobs.detach(), values.detach()]
        trained = [p for lm in r.lms for p in lm.parameters() if p.requires_grad]
        assert len(trained) >= 5
        gradients = [p.grad.clone() for p in trained]
        for p in trained:
            p.grad = None
        return outputs + gradients

    recorded = False
    expected = run(order)
    r.attach()
    r.trunk.begin(*ids.shape)
    for part in order.sort().values.split(2):
        with torch.no_grad(), r.trunk.recording(part):
            r.reference(ids[part], attended[part], mask[part])
    recorded = True
    found = run(order)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@each_architecture
@torch.no_grad()
def test_replay_does_not_run_the_trunk(architecture: str):
    r, (ids, attended, mask) = Roles(architecture), rollout()
    r.attach()
    r.trunk.begin(*ids.shape)
    with r.trunk.recording():
        expected = r.reference(ids, attended, mask).logprobs
    for layer in decoder_layers(r.reference.lm)[:2]:
        noise(layer)
    with r.trunk.replaying(slice(None)):
        assert torch.equal(r.reference(ids, attended, mask).logprobs, expected)


@each_architecture
@torch.no_grad()
def test_outside_recording_and_replay_an_attached_model_computes_as_before(architecture: str):
    r, (ids, attended, mask) = Roles(architecture), rollout()
    expected = r.policy(ids, attended, mask).logprobs
    r.attach()
    assert torch.equal(r.policy(ids, attended, mask).logprobs, expected)
    r.trunk.begin(*ids.shape)
    with r.trunk.recording():
        r.reference(ids, attended, mask)
    with r.trunk.replaying(slice(0, 2)):
        pass
    assert torch.equal(r.policy(ids, attended, mask).logprobs, expected)


@torch.no_grad()
def test_generation_works_on_an_attached_model():
    r = Roles("llama")
    ids = random_ids(1, 4)
    settings = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    expected = r.reference.lm.generate(ids, **settings)
    r.attach()
    assert torch.equal(r.reference.lm.generate(ids, **settings), expected)


@torch.no_grad()
def test_a_new_recording_replaces_the_last_one():
    r, (ids, attended, mask) = Roles("llama"), rollout()
    r.attach()
    r.trunk.begin(*ids.shape)
    with r.trunk.recording():
        r.reference(ids, attended, mask)
    other = random_ids(*ids.shape, seed=5)
    r.trunk.begin(*ids.shape)
    with r.trunk.recording():
        expected = r.reference(other, attended, mask).logprobs
    with r.trunk.replaying(slice(None)):
        assert torch.equal(r.reference(other, attended, mask).logprobs, expected)
