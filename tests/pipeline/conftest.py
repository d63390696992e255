"""A run small enough to be looked at file by file; no model is ever loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.rundir import RunDir

CONFIG = """\
run: {name: small, root: runs}
model: {path: base}
data:
  demonstrations: {train: demonstrations.jsonl}
  preferences: {train: preferences.jsonl}
  prompts: {train: prompts.jsonl, eval: prompts.eval.jsonl}
sft: {batch_size: 2, microbatch_size: 1, max_length: 8}
reward_model: {batch_size: 2, microbatch_size: 2, max_length: 8}
ppo: {steps: 3, rollout_batch_size: 4, minibatch_size: 2, microbatch_size: 1, max_prompt_tokens: 4, max_new_tokens: 4}
"""
ROWS = {
    "demonstrations": {"prompt": "the film", "completion": " is great"},
    "preferences": {"prompt": "the film", "chosen": " is great", "rejected": " is bad"},
    "prompts": {"prompt": "the film"},
}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with config.yaml, a base model without weights, and three data files of four rows."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(CONFIG)
    Path("base").mkdir()
    Path("base/config.json").write_text('{"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64}')
    for name, row in ROWS.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(4)))
    Path("prompts.eval.jsonl").write_text(json.dumps({"prompt": "the book"}) + "\n")
    return tmp_path


@pytest.fixture
def finish() -> Callable[..., None]:
    """Function that leaves what a finished stage leaves: final/ and stage.json."""
    return _finish


def _finish(run: RunDir, stage: str, /, **changes: object) -> None:
    folder = run.stage(stage)
    folder.final.mkdir(parents=True)
    (folder.final / "config.json").write_text("{}")
    hashes = run.hashes()
    manifest = {
        "stage": stage,
        "status": "finished",
        "fingerprint": "f",
        "base": {"id": "base", "hash": hashes.base("base")},
        "tokenizer_hash": None,
        "template_hash": None,
        "headline": {},
        "final_hash": hashes.folder(folder.final),
        "seconds": 2.0,
        "peak_bytes": 1000,
    }
    folder.write_manifest({**manifest, **changes})
