"""What `rlhf eval reward_model` refuses before a model is loaded; what it measures is tested on a real chain."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.config_loading import load_config
from pipeline.evaluating import evaluate
from pipeline.rundir import RunDir
from stages.base import InputError

OTHERS = "data.preferences.eval=preferences.jsonl"


@pytest.fixture
def run(workplace) -> RunDir:
    return RunDir.create(load_config("config.yaml"), ["rlhf"])


def refusal(*words: str) -> str:
    with pytest.raises(InputError) as caught:
        evaluate(words, False, Console(file=io.StringIO()))
    return str(caught.value)


def test_a_folder_that_is_no_run_is_refused(workplace):
    assert refusal("runs/small").startswith("[PATH01] run folder: no file or folder 'runs/small/config.yaml'")
    assert refusal("reward_model").startswith("[PATH01] run folder: no file or folder 'reward_model/config.yaml'")
    assert refusal("reward_model", "runs/small", OTHERS).startswith("[PATH01] run folder: ")


def test_a_reward_model_that_is_not_finished_is_refused_with_the_command_that_makes_it(run, finish):
    finish(run, "sft")
    finish(run, "reward_model", status="running")
    found = refusal("reward_model", "runs/small", OTHERS)
    assert found.startswith("[RUN04] runs/small has no finished reward_model; found reward_model running; fix: make it")
    assert found.endswith("run runs/small/config.yaml --from reward_model")


def test_without_held_out_pairs_there_is_nothing_to_measure_on(run, finish):
    finish(run, "sft")
    finish(run, "reward_model")
    assert refusal("reward_model", "runs/small") == (
        "[CONF08] a reward model is measured on held-out pairs, and the config names none; "
        "fix: add data.preferences.eval=FILE"
    )


def test_a_mistaken_override_is_refused(run):
    assert refusal("reward_model", "runs/small", "data.preference.eval=x").startswith("[CONF01]")
    assert refusal("runs/small", "evaluation.prompt=3").startswith("[CONF01]")


@pytest.mark.parametrize("stage", ["sft", "reward_model"])
def test_a_model_whose_files_changed_is_not_measured(run, finish, stage: str):
    finish(run, "sft")
    finish(run, "reward_model")
    Path(run.stage(stage).final / "config.json").write_text('{"vocab_size": 3}')
    assert refusal("reward_model", "runs/small", OTHERS).startswith(f"[STAGE06] runs/small/{stage}/final: files differ")
