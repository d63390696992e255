"""Reward functions that break their contract, before training and in its second iteration: R21."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from pipeline import preflight
from pipeline.checkpoints import CheckpointManager
from pipeline.config_loading import load_config
from pipeline.seals import read_seal
from scripts.benchmark import tiny_files
from scripts.benchmark.killing import rlhf
from scripts.benchmark.scoreboard import Figure, Row

CONFIG = """\
run: {{name: {name}, root: {work}/runs}}
model: {{path: {work}/tiny/model}}
data:
  prompts: {{train: {work}/tiny/prompts.train.jsonl}}
check: {{reward_seconds: {seconds}}}
sft: {{enabled: false}}
reward_model: {{enabled: false}}
reward: [{{function: "{work}/{name}.py:score"}}]
ppo: {{steps: 3, rollout_batch_size: 8, minibatch_size: 4, microbatch_size: 4, ppo_epochs: 1, checkpoint_every: 1,
       max_prompt_tokens: 8, max_new_tokens: 8}}
"""
FUNCTION = """\
import sys
import time

import numpy

calls = 0


def score(prompts, completions, **columns):
    global calls
    calls += 1
    n = len(completions)
    if calls < {first}:
        return [0.0] * n
    {body}
"""
_AMONG = "return [0.0, 0.0, {}, *[0.0] * (n - 3)]"


@dataclass(frozen=True)
class Fault:
    """What a function does instead, and what it is told: a code, and a text that names the sample or the count."""

    body: str
    code: str
    told: str
    in_training: bool = True
    """Whether the contract finds it there; a function that never returns is the watchdog's."""
    exit_code: int = 2
    """Of a training that meets it: 2 the function is wrong, 4 its number is not finite."""


FAULTS = {
    "too_few": Fault("return [0.0] * (n - 1)", "REW01", "values for"),
    "too_many": Fault("return [0.0] * (n + 1)", "REW01", "values for"),
    "nothing": Fault("return None", "REW01", "returned None (NoneType)"),
    "one_number": Fault("return 0.5", "REW01", "returned 0.5 (float)"),
    "dictionary": Fault("return dict.fromkeys(completions, 0.0)", "REW01", "(dict)"),
    "generator": Fault("return (0.0 for _ in completions)", "REW01", "(generator)"),
    "two_axes": Fault("return numpy.zeros((n, 1))", "REW01", "of shape ("),
    "nan": Fault(_AMONG.format("float('nan')"), "REW02", "gave nan for sample 2", exit_code=4),
    "infinity": Fault(_AMONG.format("float('-inf')"), "REW02", "gave -inf for sample 2", exit_code=4),
    "text": Fault(_AMONG.format("'0.5'"), "REW02", "gave '0.5' for sample 2"),
    "truth_value": Fault(_AMONG.format("True"), "REW02", "gave True for sample 2"),
    "nested": Fault(_AMONG.format("[0.5]"), "REW02", "gave [0.5] for sample 2"),
    "above_the_limit": Fault(_AMONG.format("1e9"), "REW02", "gave 1000000000.0 for sample 2"),
    "raises": Fault("return [1 / (i - 2) for i in range(n)]", "REW03", "ZeroDivisionError"),
    "exits": Fault("sys.exit(0)", "REW03", "on sample 0"),
    "never_returns": Fault("time.sleep(1e6)", "REW05", "has not returned", in_training=False),
}


def measure(work: Path, quick: bool) -> Figure:
    """Every fault on the four samples of the preflight, then in the second rollout of a training that checkpoints."""
    tiny_files.model(work / "tiny")
    found_before = {name: _before_training(work, name, fault) for name, fault in FAULTS.items()}
    trained = ["nan"] if quick else [name for name, fault in FAULTS.items() if fault.in_training]
    found_during = {name: _during_training(work, name) for name in trained}
    bad = {f"{when} {name}": problem for when, found in (("before", found_before), ("during", found_during))
           for name, problem in found.items() if problem}  # fmt: skip
    rejected = [sum(not problem for problem in found.values()) for found in (found_before, found_during)]
    told = f"{rejected[0]}/{len(found_before)} before training, {rejected[1]}/{len(found_during)} in its second step"
    return Figure(f"{told} rejected", not bad, {"bad": bad})


def _write(work: Path, name: str, first: int, seconds: float) -> Path:
    (work / f"{name}.py").write_text(FUNCTION.format(first=first, body=FAULTS[name].body))
    file = work / f"{name}.yaml"
    file.write_text(CONFIG.format(name=name, work=work, seconds=seconds))
    return file


def _before_training(work: Path, name: str, fault: Fault) -> str:
    """What is not as promised, or ''."""
    config = load_config(_write(work, name, first=1, seconds=30 if fault.in_training else 1))
    told = [str(error) for error in preflight.check(config).errors]
    right = len(told) == 1 and told[0].startswith(f"[{fault.code}] ") and fault.told in told[0]
    return "" if right else f"told {told}"


def _during_training(work: Path, name: str) -> str:
    """Trains with a function that keeps the contract on its first call, in the preflight and in the first step."""
    fault, config = FAULTS[name], _write(work, name, first=2, seconds=60)
    done = subprocess.run(rlhf("run", str(config)), capture_output=True, text=True)
    checkpoints = work / "runs" / name / "ppo" / "checkpoints"
    identity = read_seal(checkpoints / "step-000001", 1).identity
    newest = CheckpointManager(checkpoints, keep=2, identity=identity).latest()
    expected = {
        "the message": f"[{fault.code}] score " in done.stdout and fault.told in done.stdout,
        f"exit code {fault.exit_code}": done.returncode == fault.exit_code,
        "no traceback": "Traceback" not in done.stdout + done.stderr,
        "the checkpoint of step 1": newest is not None and newest[0] == 1,
    }
    return ", ".join(what for what, as_promised in expected.items() if not as_promised)


ROWS = {
    "R21": Row(
        "a reward function that breaks its contract is refused, with its sample, and nothing of it reaches a weight",
        "all of at least 12, before training and during it, exit code 2 or 4, the checkpoint intact",
        measure,
    )
}
