"""The tiny model and its task: real files, a known score, the same every time."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts import prepare_tiny
from scripts.prepare_tiny import gold, good
from stages.data import read_demonstrations, read_pairs, read_prompts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny")
    assert prepare_tiny.main(["--out", str(out)]) == 0
    return out


def test_gold_is_the_share_of_a_minus_a_cost_per_letter() -> None:
    assert gold("baba") == pytest.approx(0.5 - 0.08)
    assert gold("bobobe") == pytest.approx(-0.12)
    assert gold("") == -1.0


def test_the_judge_counts_completions_above_the_threshold() -> None:
    assert good(["x"] * 3, ["baba", "bobo", ""], source=["a"] * 3) == [1.0, 0.0, 0.0]


def test_chosen_has_the_higher_gold_score(folder: Path) -> None:
    for row in read_pairs(folder / "preferences.train.jsonl"):
        assert gold(row["chosen"]) > gold(row["rejected"])


def test_the_files_are_readable_by_the_stages_and_held_out_rows_are_new(folder: Path) -> None:
    for name, read, counts in [
        ("demonstrations", read_demonstrations, (1536, 128)),
        ("preferences", read_pairs, (1536, 256)),
        ("prompts", read_prompts, (256, 128)),
    ]:
        train, held_out = (read(folder / f"{name}.{part}.jsonl") for part in ("train", "eval"))
        assert (len(train), len(held_out)) == counts
        assert not {*map(json.dumps, train)} & {*map(json.dumps, held_out)}


def test_the_model_folder_loads_with_plain_transformers(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert model.config.num_hidden_layers == 2
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 64) == (39, 64)


def test_one_character_is_one_token_and_text_survives_the_round_trip(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert tokenizer("zab e").input_ids == [1, 32, 7, 12, 33, 8]
    assert tokenizer.decode([32, 7, 12, 33, 8]) == "zab e"
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_a_chat_prompt_is_a_prefix_of_its_answered_chat(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    chat = [{"role": "user", "content": "ba"}, {"role": "assistant", "content": "ze"}]
    prompt = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<bos><user>ba<assistant>"
    assert tokenizer.apply_chat_template(chat, tokenize=False) == prompt + "ze<eos>"


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        prepare_tiny.main(["--out", str(tmp_path / str(seed)), "--seed", str(seed)])
    for name in ("model/model.safetensors", "demonstrations.train.jsonl", "preferences.eval.jsonl"):
        first = (folder / name).read_bytes()
        assert (tmp_path / "0" / name).read_bytes() == first
        assert (tmp_path / "1" / name).read_bytes() != first
