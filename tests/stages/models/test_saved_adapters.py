"""An adapter on disk is whole, trained, and of the base it is put on, or it is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.base import InputError
from stages.models.config import ModelConfig, TuningConfig
from stages.models.load import ModelSource, source_of
from stages.models.publish import publish
from stages.models.roles import Roles
from tests.toy_models import noise, save_toy, toy_tokenizer

METHODS = {
    "lora": TuningConfig(method="lora", r=2),
    "adapter": TuningConfig(method="adapter"),
    "prefix_tuning": TuningConfig(method="prefix_tuning", virtual_tokens=3),
    "p_tuning": TuningConfig(method="p_tuning", virtual_tokens=3),
}
each_method = pytest.mark.parametrize("method", METHODS)


def saved(folder: Path, method: str, trained: bool = True) -> tuple[Path, Path]:
    """A base and an adapter on it."""
    base = save_toy(folder / "base")
    roles = Roles(ModelConfig(path=str(base)))
    policy = roles.policy(source_of(base), METHODS[method])
    if trained:
        for part in ("lora_", "bottleneck_", "prompt_encoder"):
            noise(policy, only=part)
    publish(policy, toy_tokenizer(), folder / "final", roles)
    return base, folder / "final"


def refusal(base: Path, final: Path, method: str) -> str:
    with pytest.raises(InputError) as error:
        Roles(ModelConfig(path=str(base))).policy(ModelSource(str(base), final), METHODS[method])
    return str(error.value)


@each_method
def test_a_final_holds_the_adapter_its_tokenizer_and_the_identity_of_its_base(method: str, tmp_path: Path):
    base, final = saved(tmp_path, method)
    names = {path.name for path in final.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "base.json", "tokenizer.json"} <= names
    assert ("prompt_encoder.safetensors" in names) == (method == "p_tuning")
    identity = json.loads((final / "base.json").read_text())
    assert identity["id"] == str(base)
    assert len(identity["weights"]) == 64


def test_the_names_in_an_adapter_are_in_the_same_order_in_every_process(tmp_path: Path):
    _, final = saved(tmp_path, "lora")
    assert json.loads((final / "adapter_config.json").read_text())["target_modules"] == ["q_proj", "v_proj"]


@each_method
def test_an_adapter_is_refused_on_other_weights_and_taken_on_a_copy_of_its_own(method: str, tmp_path: Path):
    base, final = saved(tmp_path, method)
    other = save_toy(tmp_path / "other", seed=1)
    copy = shutil.copytree(base, tmp_path / "copy")
    message = refusal(other, final, method)
    assert message.startswith(f"[PEFT01] the adapter {final} was trained on '{base}' (weights ")
    assert message.endswith("; fix: load it on the base that it was trained on")
    Roles(ModelConfig(path=str(copy))).policy(ModelSource(str(copy), final), METHODS[method])


@each_method
def test_an_empty_or_incomplete_adapter_is_refused(method: str, tmp_path: Path):
    base, final = saved(tmp_path, method)
    file = final / "adapter_model.safetensors"
    tensors = load_file(file)
    first = sorted(tensors)[0]
    for damaged in (
        {},
        {k: v for k, v in tensors.items() if k != first},
        tensors | {first: tensors[first][:-1].clone()},
        tensors | {"surplus.weight": torch.zeros(1)},
    ):
        save_file(damaged, file, metadata={"format": "pt"})
        message = refusal(base, final, method)
        assert message.startswith(f"[PEFT02] {final}: adapter_model.safetensors ")
        assert message.endswith("; fix: train that stage again")


@pytest.mark.parametrize("method", ["lora", "adapter"])
def test_an_adapter_that_learned_nothing_is_not_published(method: str, tmp_path: Path):
    with pytest.raises(InputError) as error:
        saved(tmp_path, method, trained=False)
    assert str(error.value) == (
        f"[PEFT02] {tmp_path / 'final'}: every up-projection is still zero after training; "
        "fix: lower the learning rate, or check what was trained"
    )


def test_a_prompt_without_its_network_is_not_continued(tmp_path: Path):
    base, final = saved(tmp_path, "p_tuning")
    (final / "prompt_encoder.safetensors").unlink()
    assert refusal(base, final, "p_tuning").startswith(f"[PEFT02] {final} has no prompt_encoder.safetensors: ")
    Roles(ModelConfig(path=str(base))).reference(source_of(final))  # for reading it is not needed
