"""What adapters and weights say of themselves in their files agrees with what torch says of the loaded model."""

from pathlib import Path

import pytest
import torch

from stages.models.adapter_files import adapter_errors
from stages.models.config import ModelConfig, TuningConfig
from stages.models.identity import probes_of
from stages.models.load import ModelSource, load_tokenizer
from stages.models.publish import publish
from stages.models.roles import Roles
from stages.models.weight_files import tensors_in
from tests.toy_models import noise, save_toy, toy_lm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_first_values_in_a_file_are_those_of_the_loaded_model(dtype: torch.dtype, tmp_path: Path):
    model = toy_lm("llama", seed=1)
    before = probes_of(model)
    model.to(dtype).save_pretrained(tmp_path / "stored")
    stored = tensors_in(tmp_path / "stored")
    found = {name: stored[name].first_values() for name in before if name in stored}
    assert len(found) > 5
    if dtype == torch.float16:  # rounded twice, so compared with what is loaded from it
        before = probes_of(model.to(torch.float32))
    assert found == {name: before[name] for name in found}


@pytest.mark.parametrize("method", ["lora", "adapter", "p_tuning"])
def test_a_published_adapter_is_whole_on_its_base_and_foreign_on_another(method: str, tmp_path: Path):
    base, final = tmp_path / "base", tmp_path / "final"
    save_toy(base, seed=1)
    roles = Roles(ModelConfig(path=str(base)))
    policy = roles.policy(ModelSource(str(base)), TuningConfig(method=method))
    noise(policy, only={"lora": "lora_", "adapter": "bottleneck_up", "p_tuning": "prompt_encoder"}[method])
    publish(policy, load_tokenizer(ModelSource(str(base))), final, roles)
    assert list(adapter_errors(final)) == []
    save_toy(base, seed=2)
    (error,) = adapter_errors(final)
    assert str(error).startswith(f"[PEFT01] the adapter {final} was not trained on '{base}': ")
