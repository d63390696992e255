"""The cases that the planner is held against are configs that load and plans that can be made."""

import json
from pathlib import Path

import pytest

from scripts.benchmark.planner_check import CASES, SHORT, SIZES, predicted

NUMBERS = 39 * 512 + 8 * (512 * (2 * 512 + 2 * 256 + 3 * 1408) + 2 * 512) + 512 + 39 * 512
"""Embeddings of 39 tokens, eight layers, a norm, an output layer: 23.7 million."""


@pytest.fixture
def model(tmp_path: Path) -> str:
    config = {"model_type": "llama", "vocab_size": 39} | SIZES
    (tmp_path / "config.json").write_text(json.dumps(config))
    return f"model.path={tmp_path}"


@pytest.mark.parametrize("method, run, stage, changes", CASES, ids=[f"{case[0]} {case[2]}" for case in CASES])
def test_every_case_is_planned(method, run, stage, changes, model):
    plan = predicted(["prepare=null", model, *SHORT, *changes], stage)
    copies = {"sft": 1, "reward_model": 1, "ppo": 2}[stage]
    weights = 4 * NUMBERS * (4 * copies + (2 if stage == "ppo" else 0)) if run == "full" else 4 * NUMBERS
    assert weights < plan.peak < 2 * weights + 1e9
