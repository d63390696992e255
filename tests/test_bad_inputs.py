"""Mistakes that users make, driven through `rlhf`: each is told before a model is loaded, with code, place and fix.

Numbers are rows of a list of thirty such mistakes. Two of them, a host file and a DeepSpeed configuration, cannot be
made yet: there is no launcher.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import cli

ROOT = Path(__file__).parents[1]
CONFIG = """\
run: {name: small}
model: {path: base}
data:
  demonstrations: {train: demonstrations.jsonl, eval: demonstrations.eval.jsonl}
  preferences: {train: preferences.jsonl, eval: preferences.eval.jsonl}
  prompts: {train: prompts.jsonl, eval: prompts.eval.jsonl}
sft: {batch_size: 4, microbatch_size: 2, max_length: 16}
reward_model: {batch_size: 4, microbatch_size: 2, max_length: 16}
ppo: {steps: 3, rollout_batch_size: 4, minibatch_size: 2, microbatch_size: 1, max_prompt_tokens: 8, max_new_tokens: 8}
"""
ROWS: dict[str, Callable[[int], dict[str, str]]] = {
    "demonstrations": lambda n: {"prompt": f"film {n}", "completion": " is great"},
    "preferences": lambda n: {"prompt": f"film {n}", "chosen": " is great", "rejected": " is bad"},
    "prompts": lambda n: {"prompt": f"film {n}", "answer": "great"},
}
FOLDERS = {"base": "LlamaForCausalLM", "classifier": "LlamaForSequenceClassification"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a config without mistakes, twelve rows in each training file and four in each other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLHF_DEBUG", raising=False)
    Path("config.yaml").write_text(CONFIG)
    for folder, architecture in FOLDERS.items():
        Path(folder).mkdir()
        content = {"architectures": [architecture], "max_position_embeddings": 64}
        Path(folder, "config.json").write_text(json.dumps(content))
    for name, row in ROWS.items():
        write(f"{name}.jsonl", *map(row, range(12)))
        write(f"{name}.eval.jsonl", *map(row, range(100, 104)))
    return tmp_path


def write(name: str, *rows: object) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def replace(name: str, old: str, new: str) -> None:
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))


def function(body: str, signature: str = "prompts, completions, **columns") -> None:
    Path("rewards.py").write_text(f"def score({signature}):\n    {body}\n")


@dataclass(frozen=True)
class Case:
    """One mistake, and what has to be said about it."""

    row: int
    name: str
    said: str
    """The line that is printed: its beginning up to `...`, and its end after it."""
    make: Callable[[], None] = lambda: None
    overrides: tuple[str, ...] = ()
    exit: int = 2

    @property
    def id(self) -> str:
        return f"{self.row}-{self.name}"


CASES = [
    Case(
        1,
        "missing column",
        "[DATA01] preferences.jsonl row 1: no field 'rejected' (12 such rows: 1, 2, 3, 4, 5, ...). "
        "Found: prompt, chosen, reject. Did you mean 'reject'?; fix: rename 'reject' to 'rejected'",
        lambda: replace("preferences.jsonl", '"rejected"', '"reject"'),
    ),
    Case(
        3,
        "broken line",
        "[DATA03] prompts.jsonl line 12: not JSON (Expecting ',' delimiter, column 23); "
        "fix: write one JSON object per line (all unusable rows at once: sed -i.bak '12d' prompts.jsonl)",
        lambda: replace("prompts.jsonl", '"film 11", ', '"film 11"  '),
    ),
    Case(
        3,
        "empty file",
        "[DATA03] demonstrations.jsonl holds no rows; fix: check the path, or run the script that makes the data",
        lambda: Path("demonstrations.jsonl").write_text(""),
    ),
    Case(
        11,
        "fewer rows than a batch",
        "[BATCH01] data.demonstrations.train has 12 rows, fewer than sft.batch_size 16; "
        "fix: add rows, or sft.batch_size=12 sft.microbatch_size=12",
        overrides=("sft.batch_size=16",),
    ),
    Case(
        21,
        "path typo",
        "[PATH01] model.path: no file or folder './bse'; fix: did you mean base?",
        overrides=("model.path=./bse",),
    ),
]


def rlhf(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code and what was printed by the command in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    printed = capsys.readouterr()
    return ended.value.code or 0, printed.out, printed.err


def tells(line: str, said: str) -> bool:
    """Whether a line is what has to be said; ` ... ` stands for anything."""
    start, _, end = said.partition(" ... ")
    return line.startswith(start) and line.endswith(end or start)


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
    for case in (CASES[0], CASES[1]):
        case.make()
    done = shell(command, "config.yaml", *CASES[-1].overrides)
    assert sorted(done.stderr.splitlines()) == sorted(case.said for case in (CASES[0], CASES[1], CASES[-1]))
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr


def test_a_traceback_is_shown_on_demand_with_the_same_exit_code(place: Path) -> None:
    done = shell("--debug", "check", "config.yaml", "model.path=./bse")
    assert "Traceback" in done.stderr
    assert "[PATH01] model.path: no file or folder './bse'" in done.stderr
    assert done.returncode == 2
