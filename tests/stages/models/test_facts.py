"""Sizes of a model as its files say them, without loading it."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from stages.models.facts import ModelFacts, facts_of


def config(folder: Path, **values: object) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"max_position_embeddings": 64, "vocab_size": 37}, ModelFacts(64, 37)),
        ({"n_positions": 1024, "vocab_size": 50257}, ModelFacts(1024, 50257)),
        ({"text_config": {"max_position_embeddings": 32, "vocab_size": 9}, "vision_config": {}}, ModelFacts(32, 9)),
        ({}, ModelFacts(None, None)),
    ],
)
def test_a_config_says_context_and_rows(values: dict, facts: ModelFacts, tmp_path: Path):
    assert facts_of(config(tmp_path / "model", **values)) == facts


def test_an_adapter_has_the_sizes_of_its_base(tmp_path: Path):
    base = config(tmp_path / "base", max_position_embeddings=64, vocab_size=37)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    assert facts_of(str(adapter)) == ModelFacts(64, 37)


def test_a_gguf_header_says_them_too(tmp_path: Path):
    file = tmp_path / "model.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_tensor("token_embd.weight", np.zeros((37, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert facts_of(str(file)) == ModelFacts(64, 37)


def test_of_a_hub_id_nothing_is_said():
    assert facts_of("some/model") == ModelFacts()
