"""Parameter counts by formula against those of real models, built and saved by transformers and PEFT."""

import json
from pathlib import Path

import pytest
from gguf import GGUFWriter
from peft import TaskType
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from pipeline.planner.architecture import Architecture
from pipeline.planner.reading import architecture_of, from_config
from pipeline.planner.tuned import trained_numbers
from stages.base import InputError
from stages.models.adapters import attach_adapter
from stages.models.config import TuningConfig
from stages.models.peft_types import peft_config
from tests.toy_models import toy_config

VARIANTS = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("llama", {"head_dim": 16}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3, biases": ("qwen3", {"attention_bias": True}),
    "gpt2": ("gpt2", {}),
    "gpt2, untied": ("gpt2", {"tie_word_embeddings": False, "n_inner": 48}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox, no biases": ("gpt_neox", {"attention_bias": False, "use_parallel_residual": False}),
}
LLAMA_8B = {
    **{"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256},
}


def saved(config: AutoConfig, folder: Path) -> Architecture:
    config.save_pretrained(folder)
    return architecture_of(str(folder))


def count(model) -> int:
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())


@pytest.mark.parametrize("kind, changes", VARIANTS.values(), ids=VARIANTS)
def test_the_count_is_that_of_the_model_which_transformers_builds(kind, changes, tmp_path):
    config = toy_config(kind, **changes)
    architecture = saved(config, tmp_path)
    assert architecture.parameters == count(AutoModelForCausalLM.from_config(config))
    config.num_labels = 1
    assert architecture.scalar_parameters == count(AutoModelForSequenceClassification.from_config(config))


def test_published_sizes_have_their_published_counts():
    llama = from_config(LLAMA_8B, "config.json")
    assert llama.parameters == 8_030_261_248
    assert llama.matrix_parameters == 32 * 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)


METHODS = {
    "lora": {"r": 3},
    "lora, all": {"method": "lora", "targets": "all-linear", "dora": True},
    "lora, named": {"method": "lora", "targets": ["{last}"]},
    "houlsby": {"method": "adapter"},
    "pfeiffer": {"method": "adapter", "placement": "pfeiffer", "reduction": 5},
    "prefix_tuning": {"virtual_tokens": 3},
    "prefix_tuning, projected": {"method": "prefix_tuning", "projection": True, "encoder_size": 7},
    "prompt_tuning": {"virtual_tokens": 3, "init": "random"},
    "p_tuning": {"virtual_tokens": 3},
    "p_tuning, mlp": {"method": "p_tuning", "encoder": "mlp", "encoder_size": 5},
}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("name", METHODS)
def test_the_trained_count_is_that_of_the_adapter_which_peft_makes(name, kind, tmp_path):
    config = toy_config(kind)
    architecture = saved(config, tmp_path)
    section = {"method": name} | METHODS[name]
    if "targets" in section:
        section["targets"] = (
            [t.format(last=architecture.linears[-1].name) for t in section["targets"]]
            if isinstance(section["targets"], list)
            else section["targets"]
        )
    tuning = TuningConfig(**section)
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    frozen = 1 if tuning.method in ("lora", "adapter") else 0
    adapted = attach_adapter(model, peft_config(tuning, model, TaskType.CAUSAL_LM, frozen))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained_numbers(architecture, tuning, frozen) == trained


def gguf(path: Path, output: bool) -> str:
    writer = GGUFWriter(path, "llama")
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_feed_forward_length(64)
    import numpy

    for name in ["token_embd.weight", *(["output.weight"] if output else [])]:
        writer.add_tensor(name, numpy.zeros((50, 32), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


@pytest.mark.parametrize("output", [False, True])
def test_a_gguf_header_tells_the_same_as_a_config(output, tmp_path):
    config = toy_config("llama", vocab_size=50, tie_word_embeddings=not output)
    assert architecture_of(gguf(tmp_path / "model.gguf", output)) == saved(config, tmp_path)


def test_an_adapter_has_the_sizes_of_its_base(tmp_path):
    expected = saved(toy_config("llama"), tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    card = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "base")}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(card))
    assert architecture_of(str(tmp_path / "adapter")) == expected


@pytest.mark.parametrize(
    "change, said",
    [
        ({"model_type": "mamba"}, "the layers of model_type 'mamba' are not known; found llama"),
        ({"hidden_size": None}, "'hidden_size' is None, expected a count"),
        ({"num_hidden_layers": "two"}, "'num_hidden_layers' is 'two', expected a count"),
    ],
)
def test_sizes_that_are_not_to_be_had_are_told(change, said):
    with pytest.raises(InputError, match="PLAN01") as caught:
        from_config(LLAMA_8B | change, "here/config.json")
    assert f"here/config.json: {said}" in str(caught.value)


def test_a_model_that_is_nowhere_on_this_machine_is_told_with_the_way_out():
    with pytest.raises(InputError) as caught:
        architecture_of("nobody/nothing")
    assert str(caught.value) == (
        "[PLAN01] the sizes of the model 'nobody/nothing' are not known: there is no nobody/nothing/config.json; "
        "fix: model.path=FOLDER, a folder that has its config.json (no weights needed)"
    )
