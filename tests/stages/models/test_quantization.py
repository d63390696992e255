"""A base in four bits: refused before loading where it cannot run, shared and trainable around where it can."""

import sys
from pathlib import Path

import pytest
import torch

from stages.base import InputError
from stages.models.config import ModelConfig, TuningConfig
from stages.models.heads import PolicyModel
from stages.models.load import source_of
from stages.models.roles import Roles
from tests.toy_models import random_ids, save_toy

LORA = TuningConfig(method="lora", r=2)


def test_four_bits_without_the_library_are_refused_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError) as error:
        Roles(ModelConfig(path="nowhere", quantization="4bit")).frozen_base("nowhere")
    assert str(error.value) == (
        "[DEP02] model.quantization: 4bit cannot run here: bitsandbytes is not installed; fix: "
        "pip install 'rlhf-pipeline[4bit]' on a machine that bitsandbytes supports, or quantization: none"
    )


def test_roles_share_one_base_in_four_bits_and_train_adapters_on_it(tmp_path: Path):
    pytest.importorskip("bitsandbytes", reason="an extra: importing it costs every stage 46 MB and a second")
    base = save_toy(tmp_path / "base", hidden_size=64)
    roles, source = Roles(ModelConfig(path=str(base), quantization="4bit")), source_of(base)
    policy, reference = PolicyModel(roles.policy(source, LORA)), PolicyModel(roles.reference(source))
    ids, attended = random_ids(2, 9), torch.ones(2, 9, dtype=torch.bool)
    scores = policy(ids, attended, attended[:, 4:]).logprobs
    assert torch.equal(scores, reference(ids, attended, attended[:, 4:]).logprobs)
    scores.sum().backward()
    trained = {n for n, p in policy.named_parameters() if p.grad is not None}
    assert trained and all("lora_" in n for n in trained)
    packed = {p.data_ptr() for p in policy.parameters() if p.dtype == torch.uint8}
    assert packed and packed == {p.data_ptr() for p in reference.parameters() if p.dtype == torch.uint8}
