"""`rlhf plan` as a person runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.planner.test_memory import SMALL

ROOT = Path(__file__).parents[3]


def rlhf(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    command = [sys.executable, "-m", "pipeline.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(autouse=True)
def _here(workplace):
    Path("base/config.json").write_text(json.dumps(SMALL | {"hidden_size": 2048, "intermediate_size": 8192}))


def test_every_stage_and_role_is_in_the_table_with_a_verdict():
    done = rlhf("plan", "config.yaml")
    assert done.returncode == 0, done.stderr
    for text in ("sft", "reward_model", "ppo", "policy", "value model", "reference", "reward model", "1 rank, no ZeRO"):
        assert text in done.stdout
    assert done.stdout.splitlines()[-3:] == [
        "sft: fits, 2.52 of 80 GB",
        "reward_model: fits, 2.52 of 80 GB",
        "ppo: fits, 5.54 of 80 GB",
    ]


def test_ranks_zero_and_memory_are_those_asked_for():
    done = rlhf("plan", "config.yaml", "--ranks", "4", "--zero", "3", "--memory-gb", "0.001")
    assert "(4 ranks, ZeRO-3)" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("ppo: does not fit, ")


def test_the_first_knob_is_named_where_a_stage_does_not_fit():
    done = rlhf("plan", "config.yaml", "--ranks", "4", "--memory-gb", "3")
    assert done.stdout.splitlines()[-1].endswith("first knob to turn: deepspeed.zero_stage=3")


def test_the_config_decides_what_is_not_asked_for():
    section = "deepspeed={zero_stage: 2, offload_optimizer: true}"
    assert "(2 ranks, ZeRO-2, optimizer offloaded)" in rlhf("plan", "config.yaml", section, "--ranks", "2").stdout
    assert "(2 ranks, ZeRO-1, optimizer" in rlhf("plan", "config.yaml", section, "--ranks", "2", "--zero", "1").stdout


def test_a_hostfile_and_a_json_of_deepspeeds_are_read():
    Path("hosts").write_text("one slots=4\ntwo slots=4\n")
    Path("zero.json").write_text('{"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}')
    done = rlhf("plan", "config.yaml", "launch.hostfile=hosts", "deepspeed.file=zero.json")
    assert "(8 ranks, ZeRO-3, parameters offloaded)" in done.stdout, done.stderr


def test_a_mistake_in_that_json_is_told():
    Path("zero.json").write_text('{"zero_optimization": {"stag": 3}}')
    done = rlhf("plan", "config.yaml", "deepspeed.file=zero.json")
    assert done.returncode == 2
    assert done.stderr.startswith("[DS01] zero.json:1")


def test_a_disabled_stage_is_left_out():
    done = rlhf("plan", "config.yaml", "ppo.enabled=false", "reward_model.enabled=false")
    assert done.stdout.splitlines()[-1] == "sft: fits, 2.52 of 80 GB"
    assert "value model" not in done.stdout


def test_a_model_that_is_not_here_is_told_and_ends_with_the_users_exit_code():
    done = rlhf("plan", "config.yaml", "model.path=nobody/nothing")
    assert done.returncode == 2
    assert done.stderr.startswith("[PLAN01] the sizes of the model 'nobody/nothing' are not known")


def test_a_path_that_does_not_exist_is_told_with_the_nearest_that_does():
    done = rlhf("plan", "config.yaml", "model.path=./bse")
    assert done.stderr == "[PATH01] model.path: no file or folder './bse'; fix: did you mean base?\n"


def test_a_model_that_a_script_will_make_is_told_with_the_command_that_makes_it():
    prepare = "prepare={script: make.py, arguments: [--out, here], creates: [later]}"
    done = rlhf("plan", "config.yaml", prepare, "model.path=./later")
    assert done.stderr == (
        "[PLAN01] the sizes of the model './later' are not known before make.py has made it; "
        "fix: python make.py --out here\n"
    )


def test_more_frozen_layers_than_the_model_has_are_told():
    lora = [f"{stage}.tuning.method=lora" for stage in ("sft", "reward_model", "ppo")]
    done = rlhf("plan", "config.yaml", *lora, "trunk.frozen_layers=2")
    assert done.returncode == 2
    assert done.stderr == "[TUNE02] trunk.frozen_layers is 2, the model has 2 layers; fix: frozen_layers <= 1\n"


def test_planning_imports_no_torch():
    program = (
        "import sys\nfrom pipeline import cli\n"
        "try: cli.main(['plan', 'config.yaml'])\n"
        "finally: print([m for m in ('torch', 'transformers', 'peft', 'wandb') if m in sys.modules])"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/bin"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[]\n")
