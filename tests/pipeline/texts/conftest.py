"""A run whose texts go through a real tokenizer of one token per character; its weights are never made."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.toy_models import VOCABULARY, toy_config, toy_tokenizer, write_rows

CONFIG = """\
run: {name: texts, root: runs}
model: {path: ./base}
data:
  demonstrations: {train: demonstrations.jsonl}
  preferences: {train: preferences.jsonl}
  prompts: {train: prompts.jsonl}
sft: {batch_size: 2, microbatch_size: 2, max_length: 24}
reward_model: {batch_size: 2, microbatch_size: 2, max_length: 24}
ppo: {steps: 1, rollout_batch_size: 2, minibatch_size: 2, microbatch_size: 2, max_prompt_tokens: 9, max_new_tokens: 8}
"""
DEMONSTRATIONS = [{"prompt": "the film", "completion": end} for end in (" is great", " won", " is bad", " is")]
PREFERENCES = [{"prompt": "the film", "chosen": " won", "rejected": end} for end in (" lost", " is bad", " is", " so")]
PROMPTS = [{"prompt": f"the {word}", "length": n} for n, word in enumerate(("film", "plot", "cast", "book"))]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A current folder with config.yaml, three data files, and `base`; called, it saves another tokenizer there."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(CONFIG)
    write("demonstrations", DEMONSTRATIONS)
    write("preferences", PREFERENCES)
    write("prompts", PROMPTS)
    save_base()
    return save_base


def save_base(folder: str = "base", rows: int = VOCABULARY, **tokenizer: Any) -> None:
    """A model folder without weights, and nothing of what was there."""
    shutil.rmtree(folder, ignore_errors=True)
    toy_config("llama", vocab_size=rows, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    toy_tokenizer(**tokenizer).save_pretrained(folder)


def write(name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    return write_rows(Path(f"{name}.jsonl"), rows)
