"""Bottleneck adapters as PEFT sees them: where they sit, what they compute, what PEFT's own calls do with them."""

from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from stages.base import InputError
from stages.models.adapters import parameter_counts
from stages.models.bottleneck import BottleneckConfig, BottleneckLayer
from stages.models.config import TuningConfig
from stages.models.peft_types import peft_config
from tests.toy_models import noise, random_ids, save_toy, toy_config, toy_lm

HOUSLBY = {
    "gpt2": {"attn.c_proj", "mlp.c_proj"},
    "llama": {"self_attn.o_proj", "mlp.down_proj"},
    "qwen2": {"self_attn.o_proj", "mlp.down_proj"},
    "gpt_neox": {"attention.dense", "mlp.dense_4h_to_h"},
}
PFEIFFER = {"gpt2": "mlp.c_proj", "llama": "mlp.down_proj", "qwen2": "mlp.down_proj", "gpt_neox": "mlp.dense_4h_to_h"}
each_architecture = pytest.mark.parametrize("architecture", HOUSLBY)
IDS = random_ids(2, 7)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(IDS).logits


def places(model: nn.Module) -> set[str]:
    """The adapted modules of the first layer, as attention.projection."""
    names = [name for name, module in model.named_modules() if isinstance(module, BottleneckLayer)]
    return {".".join(name.split(".")[-2:]) for name in names if ".0." in name}


@each_architecture
def test_houlsby_adapts_attention_and_feed_forward_and_pfeiffer_the_latter(architecture: str):
    config = BottleneckConfig(task_type="CAUSAL_LM")
    assert places(get_peft_model(toy_lm(architecture), config)) == HOUSLBY[architecture]
    config = BottleneckConfig(task_type="CAUSAL_LM", placement="pfeiffer")
    assert places(get_peft_model(toy_lm(architecture), config)) == {PFEIFFER[architecture]}


@each_architecture
def test_a_new_adapter_changes_no_bit_and_a_trained_one_can_be_switched_off(architecture: str):
    before = logits(toy_lm(architecture))
    model = get_peft_model(toy_lm(architecture), BottleneckConfig(task_type="CAUSAL_LM"))
    assert torch.equal(logits(model), before)
    noise(model, only="bottleneck_")
    assert (logits(model) - before).abs().max() > 1e-2
    with model.disable_adapter():
        assert torch.equal(logits(model), before)


def test_it_computes_h_plus_up_of_the_activation_of_down_of_h():
    config = BottleneckConfig(reduction=2, activation="relu")
    layer = BottleneckLayer(nn.Linear(2, 4, bias=False), "default", config)
    with torch.no_grad():
        layer.base_layer.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0]]))
        layer.bottleneck_down["default"].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0]]))
        layer.bottleneck_up["default"].weight.copy_(torch.tensor([[1.0, 0], [0, 1], [0, 0], [2, 0]]))
        layer.bottleneck_up["default"].bias.copy_(torch.tensor([0.0, 0, 0, 0.5]))
    # h = [3, 2, 5, 0]; down = [3, -2]; relu = [3, 0]; up = [3, 0, 0, 6.5]
    assert layer(torch.tensor([[3.0, 2.0]])).tolist() == [[6.0, 2.0, 5.0, 6.5]]


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize(
    ("hidden", "inner", "layers", "heads", "vocabulary"),
    [(576, 1536, 30, 9, 49152), (2048, 8192, 16, 32, 128256)],
    ids=["SmolLM2-135M", "Llama-3.2-1B"],
)
def test_default_adapters_are_two_to_four_percent_of_the_model(
    placement: str, hidden: int, inner: int, layers: int, heads: int, vocabulary: int
):
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    more = {"num_attention_heads": heads, "num_key_value_heads": heads, "tie_word_embeddings": True}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(toy_config("llama", vocab_size=vocabulary, **sizes, **more))
    total = parameter_counts(model)["parameters"]
    tuning = TuningConfig(method="adapter", placement=placement)
    counts = parameter_counts(get_peft_model(model, peft_config(tuning, model, TaskType.CAUSAL_LM)))
    assert 0.02 <= counts["trainable_parameters"] / total <= 0.04


def test_several_named_adapters_live_on_one_model(tmp_path: Path):
    base = save_toy(tmp_path / "base")
    outputs = {}
    for seed, name in enumerate(("one", "two")):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), BottleneckConfig(task_type="CAUSAL_LM"))
        noise(model, only="bottleneck_", seed=seed)
        model.save_pretrained(tmp_path / name)
        outputs[name] = logits(model)
    both = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "one", adapter_name="one")
    both.load_adapter(tmp_path / "two", adapter_name="two")
    for name in ("one", "two", "one"):
        both.set_adapter(name)
        assert torch.equal(logits(both), outputs[name])
    both.delete_adapter("two")
    assert torch.equal(logits(both), outputs["one"])
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "two")), outputs["two"])


def test_merging_is_refused_and_changes_nothing():
    model = get_peft_model(toy_lm("llama"), BottleneckConfig(task_type="CAUSAL_LM"))
    noise(model, only="bottleneck_")
    before = logits(model)
    with pytest.raises(ValueError, match="a bottleneck adapter is not linear"):
        model.merge_and_unload()
    assert torch.equal(logits(model), before)


def test_an_unknown_architecture_is_told_what_to_set():
    lm = toy_lm("phi")
    with pytest.raises(InputError) as error:
        get_peft_model(lm, BottleneckConfig(task_type="CAUSAL_LM"))
    assert str(error.value) == (
        "[TUNE03] method adapter does not know the sublayers of architecture 'phi', only those of gpt2, gpt_neox, "
        "llama, mistral, qwen2, qwen3; fix: set tuning.targets to the last projections of attention and feed-forward"
    )
    tuning = TuningConfig(method="adapter", targets=["dense", "fc2"])
    placed = get_peft_model(toy_lm("phi"), peft_config(tuning, lm, TaskType.CAUSAL_LM))
    assert places(placed) == {"self_attn.dense", "mlp.fc2"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"reduction": 0}, "reduction"), ({"placement": "both"}, "placement"), ({"activation": "sine"}, "activation")],
)
def test_a_config_without_meaning_is_refused(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        BottleneckConfig(**wrong)
