"""Mistakes that users make, driven through `rlhf`: each is told before a model is loaded, with code, place and fix.

Numbers are rows of a list of thirty such mistakes. Those of texts as tokens (4 to 8, 10, 16) have more in
pipeline/texts, those of checkpoints and storage (19, 20, 22, 29) are in pipeline, empty completions (9) in stages/ppo.
A host that is down (25) is in multinode.
"""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cli
from tests.bad_inputs import data, deepspeed_files, hosts, models_and_rewards
from tests.bad_inputs.data import nulls, row
from tests.bad_inputs.models_and_rewards import SCORED, function
from tests.bad_inputs.place import ROWS, Case, fill, replace, write

ROOT = Path(__file__).parents[1]
CASES = [*data.CASES, *models_and_rewards.CASES, *deepspeed_files.CASES, *hosts.CASES]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a config without mistakes, where neither keys nor terminals are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RLHF_DEBUG", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    fill()
    return tmp_path


def rlhf(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code and what was printed by the command in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    printed = capsys.readouterr()
    return ended.value.code or 0, printed.out, printed.err


def tells(line: str, said: str) -> bool:
    """Whether a line is what has to be said; `…` stands for anything."""
    start, gap, end = said.partition("…")
    return line.startswith(start) and line.endswith(end) if gap else line == said


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def test_a_config_without_mistakes_has_none(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = rlhf(capsys, "check", "config.yaml")
    assert (code, err) == (0, "")
    assert out.endswith("config.yaml: no mistakes found\n")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_mistake_is_told_with_its_place_and_its_fix(
    case: Case, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case.make()
    code, out, err = rlhf(capsys, "check", "config.yaml", *case.overrides)
    assert [line for line in err.splitlines() if not tells(line, case.said)] == []
    assert err.count("\n") == 1
    assert code == case.exit
    assert "Traceback" not in out + err


@pytest.mark.parametrize("command", ["check", "run"])
def test_mistakes_of_all_files_come_together_from_check_and_run(place: Path, command: str) -> None:
    cases = [CASES[0], CASES[1], next(case for case in CASES if case.name == "path typo")]
    for case in cases:
        case.make()
    done = shell(command, "config.yaml", *cases[-1].overrides)
    assert sorted(done.stderr.splitlines()) == sorted(case.said for case in cases)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr


def test_a_traceback_is_shown_on_demand_with_the_same_exit_code(place: Path) -> None:
    done = shell("--debug", "check", "config.yaml", "model.path=./bse")
    assert "Traceback" in done.stderr
    assert "[PATH01] model.path: no file or folder './bse'" in done.stderr
    assert done.returncode == 2


def test_mistakes_of_config_data_models_and_rewards_come_together(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nulls()
    replace("config.yaml", "{steps: 3", "{stepz: 3")
    function("return None")
    overrides = (*SCORED, "model.path=./bse", "sft.learning_rate=fast", "tracking.wandb=online")
    code, _, err = rlhf(capsys, "check", "config.yaml", *overrides)
    assert [line.partition("]")[0] for line in err.splitlines()] == [
        "[CONF01", "[CONF02", "[WB01", "[DATA02", "[PATH01", "[REW01",
    ]  # fmt: skip
    assert code == 2  # as long as a person's hand is needed


def test_parts_that_are_mistaken_in_the_config_are_not_blamed_twice(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace("config.yaml", "prompts: {train: prompts.jsonl", "prompts: {trian: prompts.jsonl")
    _, _, err = rlhf(capsys, "check", "config.yaml")
    assert sorted(line.partition("]")[0] for line in err.splitlines()) == ["[CONF01", "[CONF06"]


def test_a_few_oddities_are_told_and_refuse_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("preferences.jsonl", *map(ROWS["preferences"], [*range(30), 3]))
    row("prompts.eval.jsonl", 2, prompt="film 5")
    code, out, _ = rlhf(capsys, "check", "config.yaml", "ppo.rollout_batch_size=16")
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("note: ") and "tokens" not in line] == [
        "note: preferences.jsonl: 1 of 31 rows repeat an earlier row (31)",
        "note: prompts.eval.jsonl: 1 of 4 rows are also in prompts.jsonl (2); what is measured on them is flattered",
        "note: data.prompts.train has 12 rows, fewer than ppo.rollout_batch_size 16: each rollout repeats prompts",
        "note: data.prompts.eval has 4 rows, fewer than ppo.eval_prompts 64 and evaluation.prompts 256: all are used",
    ]


def test_what_is_in_order_is_said_stage_by_stage(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    function("return [float(len(c)) for c in completions]")
    _, out, _ = rlhf(capsys, "check", "config.yaml", *SCORED)
    said = [
        "[environment] W&B disabled",
        "[sft] demonstrations.eval.jsonl: 4 rows of prompt, completion, none of them in train",
        "[reward_model] preferences.jsonl: 12 rows of prompt, chosen, rejected",
        "[ppo] prompts.jsonl: 12 rows of prompt, answer",
        "[ppo] rewards.py:score on 4 samples: 9, 9, 9, 0",
    ]
    assert [line for line in said if line not in out.splitlines()] == []


def test_metrics_are_tried_on_real_rows_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row("prompts.jsonl", 4, answer=None)
    terms = "reward=[{metric: exact_match, reference: answer}, {metric: length, arguments: {target: 2}}]"
    code, out, err = rlhf(capsys, "check", "config.yaml", terms)
    assert (code, err) == (0, "")
    said = [
        "[ppo] metric exact_match on 4 samples: 0, -, 0, 0",
        "[ppo] metric length on 4 samples: 1, 1, 1, 0",
        "note: prompts.jsonl: 'answer' is null in 1 of 12 rows (4): "
        "the reward term 'exact_match' does not apply to them",
    ]
    assert [line for line in said if line not in out.splitlines()] == []
