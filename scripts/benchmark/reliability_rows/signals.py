"""Polite signals: R14."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.watchdog import HEARTBEAT
from scripts.benchmark.killing import ENVIRONMENT, REPOSITORY, kill_session, rlhf, run
from scripts.benchmark.reliability_rows.divergence import STEPS, new_run
from scripts.benchmark.scoreboard import Figure, Row
from scripts.benchmark.tiny_chain import NAME, SHORT, STAGES, TinyChain

TRAINER_PHASES = ("loading", "training", "evaluation", "saving", "training")
PHASES = {
    "sft": TRAINER_PHASES,
    "reward_model": TRAINER_PHASES,
    "ppo": ("loading", "rollout", "scoring", "update", "evaluation", "saving"),
}
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
SECOND_AFTER = 1.2
"""Seconds between the two signals of a pair; two within a second count as one Ctrl-C."""
LONGEST = 300


@dataclass(frozen=True)
class Plan:
    """When a stage gets which signal."""

    phase: str
    step: int
    """At the earliest."""
    number: signal.Signals
    doubled: bool


@dataclass(frozen=True)
class Interruption:
    """What a signal did."""

    plan: str
    code: int
    status: str
    lost: int
    """Steps that were finished when the signal came and are not in the saved state."""
    seconds: float
    """From the signal until `rlhf run` had ended."""
    traceback: bool

    @property
    def fine(self) -> bool:
        """Whether it ended as promised; a stage that was at its very end may have finished."""
        saved = self.status == "interrupted" and self.lost == 0
        return not self.traceback and self.code in CODES.values() and (saved or self.status == "finished")


def interrupt(command: list[str], stage: Path, plan: Plan, log: Path) -> Interruption:
    """Start `rlhf run`, send it a signal when its stage is at the planned place, and wait for its end.

    SIGINT goes to the whole process group, as from a terminal.
    """
    start = log.stat().st_size if log.exists() else 0
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=ENVIRONMENT, stdout=output, stderr=output, start_new_session=True
        )
    try:
        pulse = _await(process, stage / HEARTBEAT, plan)
        since = time.monotonic()
        for pause in (0.0, SECOND_AFTER) if plan.doubled else (0.0,):
            time.sleep(pause)
            if process.poll() is None:
                (os.killpg if plan.number == signal.SIGINT else os.kill)(process.pid, plan.number)
        code = process.wait(LONGEST)
        seconds = time.monotonic() - since
    finally:
        kill_session(process.pid)
        process.wait()
    manifest = _manifest(stage)
    lost = max(0, pulse["step"] - 1 - manifest.get("step", 0)) if manifest.get("status") == "interrupted" else 0
    told = log.read_bytes()[start:]
    return Interruption(str(plan), code, manifest.get("status", "none"), lost, seconds, b"Traceback" in told)


def _await(process: subprocess.Popen, heartbeat: Path, plan: Plan) -> dict:
    """The pulse of the stage when it is at the planned place; the last one where it never is."""
    pulse = {"phase": "", "step": 0}
    while process.poll() is None:
        try:
            pulse = json.loads(heartbeat.read_text())
        except (OSError, ValueError):  # not begun, or being written
            continue
        if pulse["phase"] == plan.phase and pulse["step"] >= plan.step:
            break
        time.sleep(0.001)
    return pulse


def _manifest(stage: Path) -> dict:
    file = stage / "stage.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _figure(found: list[Interruption], other: list[str]) -> Figure:
    bad = [asdict(one) for one in found if not one.fine]
    interrupted = sum(one.status == "interrupted" for one in found)
    lost, slowest = sum(one.lost for one in found), max(one.seconds for one in found)
    text = (
        f"{len(bad)} bad of {len(found)} signals ({interrupted} saved and ended, the rest finished); {lost} steps "
        f"lost; {len(other)} other results after resuming; slowest end {slowest:.1f} s"
    )
    return Figure(text, not bad and not other, {"bad": bad, "other": other, "all": [asdict(one) for one in found]})


def small(work: Path) -> Figure:
    """Two signals to one PPO run from the base model, against the same run undisturbed."""
    expected = new_run(work, "ppo-whole", "ppo.checkpoint_every=0")
    disturbed = new_run(work, "ppo-disturbed", "ppo.checkpoint_every=0")
    log, found = work / "output.txt", []
    ends = [run(rlhf("run", str(expected.config_file), "--only", "ppo"), log, LONGEST)]
    command = rlhf("run", str(disturbed.config_file), "--only", "ppo")
    for plan in (Plan("rollout", 2, signal.SIGTERM, False), Plan("update", 4, signal.SIGINT, True)):
        found.append(interrupt(command, disturbed.stage("ppo").path, plan, log))
    ends.append(run(command, log, LONGEST))
    hashes = [r.stage("ppo").manifest.get("final_hash") for r in (expected, disturbed)]
    return _figure(found, [] if ends == [0, 0] and hashes[0] == hashes[1] else [f"{ends} {hashes}"])


def whole(work: Path, signals: int) -> Figure:
    """As many signals at random places of all three stages, each into a run of its own that is then finished."""
    chain, instants = TinyChain(work, STAGES), random.Random(14)
    never = [item for item in SHORT if "checkpoint_every" not in item]
    found, other = [], []
    for number in range(signals):
        stage = STAGES[number % len(STAGES)]
        phases = PHASES[stage]
        phase = phases[number // len(STAGES) % len(phases)]
        step = 0 if phase == "loading" else instants.randint(0 if phase == "evaluation" else 1, STEPS - 1)
        plan = Plan(phase, step, instants.choice(list(CODES)), number % 2 == 0)
        every = int(phase == "saving")
        trial = chain.copy(f"{stage}-{number}", before=stage)
        saving = [f"{name}.checkpoint_every={every}" for name in STAGES]
        base = rlhf("run", "configs/tiny.yaml", f"run.root={trial.root}", *never, *saving, "--only", stage)
        folder = trial.root / NAME / stage
        found.append(interrupt(base, folder, plan, trial.root / "output.txt"))
        code = run(base, trial.root / "output.txt", LONGEST)
        same = _manifest(folder).get("final_hash") == _manifest(chain.undisturbed / stage).get("final_hash")
        if code != 0 or not same:
            other.append(f"{trial.root}: exit code {code}, {plan}")
        elif found[-1].fine:
            shutil.rmtree(trial.root)
    return _figure(found, other)


def measure(work: Path, quick: bool) -> Figure:
    """R14"""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` would have silenced it for all children
    return small(work) if quick else whole(work, 30)


ROWS: dict[str, Row] = {
    "R14": Row(
        "SIGTERM or SIGINT saves the running step, ends with 143 or 130, and costs nothing; a second one does no harm",
        "0 bad of 30; 0 steps lost; the same results",
        measure,
    )
}
