"""What `rlhf check` finds, and that it does so without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.batch_plan import batch_errors, plan
from pipeline.config_loading import load_config
from pipeline.preflight import check


def mistakes(*overrides: str) -> list[str]:
    return [str(error) for error in check(load_config("config.yaml", overrides)).errors]


@pytest.fixture(autouse=True)
def _here(workplace):
    Path("rewards.py").write_text(
        "def score(prompts, completions, **columns): return [1.0] * len(prompts)\ndef narrow(prompts): return []\n"
    )
    Path("broken.py").write_text("1 / 0\n")


def test_a_good_config_has_no_mistakes():
    assert mistakes() == []


def test_the_plan_is_exact_arithmetic():
    sft, reward_model, ppo = plan(load_config("config.yaml"), {"demonstrations.train": 5, "preferences.train": 4})
    assert (sft.steps, sft.accumulation, sft.tokens_per_step, sft.tokens) == (3, 2, 16, 48)
    assert (reward_model.steps, reward_model.accumulation, reward_model.tokens_per_step) == (2, 1, 32)
    assert (ppo.rollout, ppo.minibatch, ppo.microbatch, ppo.accumulation) == (4, 2, 1, 2)
    assert (ppo.steps, ppo.optimizer_steps, ppo.tokens_per_step, ppo.tokens) == (3, 24, 32, 96)


def test_steps_stay_open_where_packing_decides_them():
    sft, *_ = plan(load_config("config.yaml", ["sft.packing=true"]), {"demonstrations.train": 5})
    assert (sft.steps, sft.tokens) == (None, None)


@pytest.mark.parametrize(
    "override, message",
    [
        (
            "data.prompts.train=promts.jsonl",
            "[PATH01] data.prompts.train: no file or folder 'promts.jsonl'; fix: did you mean prompts.jsonl?",
        ),
        ("model.path=./bse", "[PATH01] model.path: no file or folder './bse'; fix: did you mean base?"),
        (
            "data.prompts=null",
            "[CONF08] ppo needs data.prompts.train, which the config does not name; "
            "fix: add it, or set ppo.enabled=false",
        ),
        (
            "sft.batch_size=8",
            "[BATCH01] data.demonstrations.train has 4 rows, fewer than sft.batch_size 8; "
            "fix: add rows, or sft.batch_size=4 sft.microbatch_size=4",
        ),
        (
            "reward_model.batch_size=3",
            "[BATCH02] reward_model.batch_size 3 is not a multiple of reward_model.microbatch_size 2; "
            "fix: reward_model.microbatch_size=1",
        ),
        (
            "reward_model.enabled=false",
            "[STAGE07] a reward term uses reward_model, but that stage is disabled and this run has none; "
            "fix: set reward_model.enabled=true, or change `reward`",
        ),
        (
            "ppo.max_prompt_tokens=61",
            "[LEN01] ppo.max_prompt_tokens + max_new_tokens is 65 tokens, more than the model's context 64; "
            "fix: lower ppo.max_prompt_tokens + max_new_tokens",
        ),
        (
            "reward=[{function: 'rewards.py:narrow'}]",
            "[REW04] rewards.py:narrow takes (prompts); needs (prompts, completions, **columns); "
            "fix: add the missing parameters",
        ),
        (
            "evaluation.judge=broken.py:f",
            "[REW04] reward function 'broken.py:f' cannot be imported (ZeroDivisionError: division by zero); "
            "fix: correct that file",
        ),
    ],
)
def test_a_mistake_is_told_with_its_fix(override, message):
    assert mistakes(override) == [message]


def test_a_judge_that_was_trained_on_is_refused():
    found = mistakes("reward=[{function: 'rewards.py:score'}]", "evaluation.judge=rewards.py:score")
    assert [message[:8] for message in found] == ["[CONF09]"]


def test_mistakes_of_several_files_come_together():
    Path("prompts.jsonl").write_text('{"prompt": 3}\n')
    Path("preferences.jsonl").write_text("{")
    found = mistakes("model.path=./bse")
    assert len(found) >= 3
    assert any("preferences.jsonl line 1" in message for message in found)


def test_files_that_will_be_prepared_are_not_missed():
    with open("config.yaml", "a") as file:
        file.write("prepare: {script: rewards.py, creates: [later.jsonl]}\n")
    found = check(load_config("config.yaml", ["data.prompts={train: later.jsonl}", "model.path=later.gguf"]))
    assert found.errors == []
    assert found.notes[0] == "rewards.py will create later.jsonl; texts are checked after that"


def test_checking_imports_no_torch():
    program = (
        "import sys\nfrom pipeline import cli\n"
        "try: cli.main(['check', 'config.yaml'])\n"
        "finally: print('torch' in sys.modules, 'wandb' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(root), "PATH": "/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert "config.yaml: no mistakes found" in done.stdout
    assert done.stdout.endswith("False False\n")


def test_the_plan_shows_how_ranks_share_a_batch():
    config = load_config("config.yaml", ["sft.batch_size=8", "reward_model.batch_size=4"])
    sft, reward_model, _ = plan(config, {}, ranks=2)
    assert (sft.ranks, sft.forward, sft.accumulation) == (2, 1, 4)
    assert (reward_model.forward, reward_model.accumulation) == (2, 1)


def test_a_batch_that_ranks_cannot_share_is_told_before_the_run():
    config = load_config("config.yaml", ["sft.batch_size=3", "reward_model.enabled=false"])
    assert [str(error) for error in batch_errors(config, {}, ranks=2)] == [
        "[BATCH02] sft.batch_size 3 cannot be shared evenly by 2 ranks; fix: sft.batch_size=2 or 4"
    ]
