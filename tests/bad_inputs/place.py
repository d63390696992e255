"""A folder with a config without mistakes, and what spoils it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CONFIG = """\
run: {name: small}
model: {path: base}
data:
  demonstrations: {train: demonstrations.jsonl, eval: demonstrations.eval.jsonl}
  preferences: {train: preferences.jsonl, eval: preferences.eval.jsonl}
  prompts: {train: prompts.jsonl, eval: prompts.eval.jsonl}
sft: {batch_size: 4, microbatch_size: 2, max_length: 32}
reward_model: {batch_size: 4, microbatch_size: 2, max_length: 32}
ppo: {steps: 3, rollout_batch_size: 4, minibatch_size: 2, microbatch_size: 1, max_prompt_tokens: 16, max_new_tokens: 8}
"""
ROWS: dict[str, Callable[[int], dict[str, str]]] = {
    "demonstrations": lambda n: {"prompt": f"film {n}", "completion": " is great"},
    "preferences": lambda n: {"prompt": f"film {n}", "chosen": " is great", "rejected": " is bad"},
    "prompts": lambda n: {"prompt": f"film {n}", "answer": "great"},
}
FOLDERS = {"base": "LlamaForCausalLM", "classifier": "LlamaForSequenceClassification"}


def fill() -> None:
    """Make the current folder a good one: twelve rows in each training file, four in each other."""
    Path("config.yaml").write_text(CONFIG)
    for folder, architecture in FOLDERS.items():
        Path(folder).mkdir()
        content = {"architectures": [architecture], "max_position_embeddings": 64}
        Path(folder, "config.json").write_text(json.dumps(content))
    for name, row in ROWS.items():
        write(f"{name}.jsonl", *map(row, range(12)))
        write(f"{name}.eval.jsonl", *map(row, range(100, 104)))


def write(name: str, *rows: object) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def replace(name: str, old: str, new: str) -> None:
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))


@dataclass(frozen=True)
class Case:
    """One mistake, and what has to be said about it."""

    row: int
    name: str
    said: str
    """The line that is printed; `…` stands for anything."""
    make: Callable[[], None] = lambda: None
    overrides: tuple[str, ...] = ()
    exit: int = 2

    @property
    def id(self) -> str:
        return f"{self.row}-{self.name}"
