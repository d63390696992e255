"""Reward functions tried in processes of their own: nothing that they do reaches the caller."""

import textwrap
import time
from pathlib import Path

import pytest

from reward.base import RewardError
from reward.dry_run import Patience, Trial, try_all

FILE = """
    import os, signal, sys, threading, time

    def good(prompts, completions, label, scale=1.0, **columns):
        print("this is no answer")
        return [scale * len(c) for c in completions]

    def sleeps(prompts, completions, **columns):
        time.sleep(1e6)

    def spins(prompts, completions, **columns):
        while True:
            try:
                (lambda: None)()
            except BaseException:
                pass

    def dies(prompts, completions, **columns):
        os.kill(os.getpid(), signal.SIGKILL)

    def leaves(prompts, completions, **columns):
        os._exit(0)

    def lingers(prompts, completions, **columns):
        threading.Thread(target=time.sleep, args=(1e6,)).start()
        return [0.0] * len(completions)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_rewards.py"
    path.write_text(textwrap.dedent(FILE))
    return path


def trial(file: Path, name: str, **changes: object) -> Trial:
    return Trial(f"{file}:{name}", ["p", "q"], ["abc", ""], {"label": [1, 0]}, **changes)


def test_a_good_function_answers_with_its_scores_whatever_it_prints_or_leaves_running(file: Path):
    trials = [trial(file, "good", arguments={"scale": 2.0}), trial(file, "lingers"), Trial(f"{file}:good")]
    assert try_all(trials, Patience(30)) == [[6.0, 0.0], [0.0, 0.0], []]


@pytest.mark.parametrize(("name", "line"), [("sleeps", 9), ("spins", None)])
def test_a_function_that_never_returns_is_stopped_and_told_with_its_line(file: Path, name: str, line: int | None):
    start = time.monotonic()
    (error,) = try_all([trial(file, name)], Patience(1))
    assert isinstance(error, RewardError)
    where = f"; it is at {file}:{line or ''}"
    assert str(error).startswith(f"[REW05] {file}:{name} has not returned after 1 s on 2 samples{where}")
    assert str(error).endswith("; fix: mend it, or give it longer: check.reward_seconds")
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(("name", "code"), [("dies", -9), ("leaves", 0)])
def test_a_function_that_ends_its_process_is_told(file: Path, name: str, code: int):
    (error,) = try_all([trial(file, name)], Patience(30))
    assert str(error) == (
        f"[REW03] {file}:{name} ended its process with exit code {code} instead of returning; "
        "fix: let it raise or return"
    )


def test_a_mistake_is_told_as_in_training(file: Path):
    (absent,) = try_all([trial(file, "absent")], Patience(30))
    assert str(absent).startswith(f"[REW04] reward function '{file}:absent' cannot be imported")
    (above,) = try_all([trial(file, "good", limit=2.0)], Patience(30))
    assert "[REW02]" in str(above)
    assert "above the limit 2" in str(above)


def test_an_import_that_never_ends_is_told_as_such(tmp_path: Path):
    path = tmp_path / "slow.py"
    path.write_text("import time\ntime.sleep(1e6)\ndef f(prompts, completions, **columns): ...\n")
    (error,) = try_all([Trial(f"{path}:f")], Patience(call=1, imports=2))
    assert str(error).startswith(f"[REW05] {path}:f: importing it has not ended after 2 s")
    assert f"; it is at {path}:2; fix: move what takes long" in str(error)
