"""Runs that make no progress: R23."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmark.scoreboard import Figure, Row

FAULTS = {
    "endless": "while True:\n            time.sleep(1)",
    "regex": "re.match('(a+)+$', 40 * 'a' + 'b')",
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
}
"""A reward function in Python that never returns; one in C that keeps the interpreter; a process that is stopped."""
REWARD = """
import os, re, signal, time
from pathlib import Path

HERE = Path(__file__).parent
calls = 0

def length(prompts, completions, **columns):
    global calls
    calls += len(prompts) > 4  # the check before a run asks for four
    if calls == 4 and (HERE / "hang").exists():
        (HERE / "since").write_text(str(time.time()))
        {fault}
    return [float(len(c)) for c in completions]
"""
TIMEOUT, ALLOWED = 20, 10
"""Seconds without progress that are configured, and after them until the process is gone."""
OVERRIDES = (
    *("sft.enabled=false", "reward_model.enabled=false", f"run.hang_timeout_s={TIMEOUT}"),
    *("ppo.steps=4", "ppo.rollout_batch_size=8", "ppo.minibatch_size=8", "ppo.microbatch_size=8"),
    *("ppo.eval_prompts=8", "ppo.checkpoint_every=1", "check.reward_seconds=120"),
)


@dataclass(frozen=True)
class Hang:
    """One run that hung."""

    fault: str
    seconds: float
    """From when it hung until stage.json said that it was ended."""
    missing: list[str]
    """What should have been so and was not."""


def hang(work: Path, fault: str) -> Hang:
    """Let PPO hang in the scoring of its second step, then continue it."""
    folder = work / fault
    folder.mkdir()
    (folder / "reward.py").write_text(REWARD.format(fault=FAULTS[fault]))
    (folder / "hang").touch()
    ended = _rlhf(folder)
    stage = folder / "tiny/ppo"
    seconds = (stage / "stage.json").stat().st_mtime - float((folder / "since").read_text())
    log, manifest = (stage / "log.txt").read_text(), json.loads((stage / "stage.json").read_text())
    (folder / "hang").unlink()
    again = _rlhf(folder)
    holds = {
        "exit code 6": ended.returncode == 6,
        f"end after {TIMEOUT + ALLOWED} s": seconds <= TIMEOUT + ALLOWED,
        "rank, stage, step and phase": "[HANG01] rank 0: ppo step 2, scoring: no progress for 20 s" in log,
        "the same on the terminal": "[HANG01] rank 0: ppo step 2, scoring" in ended.stdout,
        "stacks": 'reward.py", line' in log and "in length" in log,
        "status failed": manifest["status"] == "failed" and "[HANG01]" in manifest["error"],
        "resume from step 1": again.returncode == 0 and "checkpoints/step-000001" in again.stdout,
    }
    return Hang(fault, seconds, [name for name, so in holds.items() if not so])


def _rlhf(folder: Path) -> subprocess.CompletedProcess:
    reward = f'reward=[{{function: "{folder.resolve()}/reward.py:length"}}]'
    command = [sys.executable, "-m", "pipeline.cli", "run", "configs/tiny.yaml", "--only", "ppo", f"run.root={folder}"]
    return subprocess.run(
        [*command, reward, *OVERRIDES], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def measure(work: Path, quick: bool) -> Figure:
    """R23"""
    faults = ["endless", "stopped"] if quick else list(FAULTS)
    with ThreadPoolExecutor(len(faults)) as pool:
        hangs = list(pool.map(lambda fault: hang(work, fault), faults))
    late = max(h.seconds for h in hangs) - TIMEOUT
    bad = sum(bool(h.missing) for h in hangs)
    found = f"{bad} bad of {len(hangs)}; stopped at most {late:.1f} s after the timeout"
    return Figure(found, bad == 0, {h.fault: vars(h) for h in hangs})


ROWS: dict[str, Row] = {
    "R23": Row(
        "a stage without progress ends, with rank, phase, step and all stacks; its checkpoints are intact",
        f"0 bad; stopped within the timeout + {ALLOWED} s",
        measure,
    )
}
