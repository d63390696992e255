"""Counts what Python unpickles by name while the tiny chain runs, is killed and resumes: `pickle.find_class` events.

Python raises that audit event whenever an unpickler, of C or of Python, looks up a class or function by the name in a
pickle. torch's restricted unpickler of `weights_only=True` looks names up in a table of its own and raises none.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HOOK = """\
import json, os, sys, traceback

def _hook(event, arguments, log=os.environ["RLHF_AUDIT"]):
    if event == "pickle.find_class":
        stack = [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_stack()[:-1]][-12:]
        with open(f"{log}.{os.getpid()}", "a") as file:
            file.write(json.dumps({"names": list(map(str, arguments)), "argv": sys.argv[:4], "stack": stack}) + "\\n")

with open(os.environ["RLHF_AUDIT"] + ".processes", "a") as file:
    file.write(json.dumps(sys.argv[:4] if hasattr(sys, "argv") else []) + "\\n")
sys.addaudithook(_hook)
"""
ALLOWED = {
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
}
STAGES = ("sft", "reward_model", "ppo")
SMALL = (
    *("sft.max_steps=4", "reward_model.max_steps=4", "ppo.steps=3", "ppo.eval_prompts=8", "evaluation.prompts=8"),
    *("sft.checkpoint_every=1", "reward_model.checkpoint_every=1", "ppo.checkpoint_every=1"),
)
DEADLINE = 600


def watched(work: Path) -> dict[str, str]:
    """An environment in which every Python process notes what it unpickles by name."""
    hook = work / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    path = os.pathsep.join([str(hook), str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "RLHF_AUDIT": str(work / "audit"), "HF_HUB_OFFLINE": "1"}


def run_killed(environment: dict[str, str], run: Path, killed: Sequence[str], *arguments: str) -> str | None:
    """`rlhf` with these arguments until each of these stages of `run` was killed with a checkpoint, then to its end.

    What went wrong, or None.
    """
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    for stage in killed:
        _kill_at_checkpoint(command, environment, run / stage / "checkpoints")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE)
    told = done.stdout + done.stderr
    logs = [run / stage / "log.txt" for stage in killed]  # a stage that is run by itself has none
    texts = [log.read_text(encoding="utf-8") if log.is_file() else told for log in logs]
    resumed = all("resuming from" in text for text in texts)
    return None if done.returncode == 0 and resumed else told[-1500:]


def control(environment: dict[str, str]) -> None:
    """A process that unpickles two things by name, which must be seen."""
    code = "import fractions, pickle, queue; pickle.loads(pickle.dumps([fractions.Fraction(1), queue.Empty()]))"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def _kill_at_checkpoint(command: list[str], environment: dict[str, str], checkpoints: Path) -> None:
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + DEADLINE
    while not list(checkpoints.glob("step-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def events(work: Path) -> list[dict[str, Any]]:
    """What was unpickled by name outside the four classes of DeepSpeed."""
    files = [file for file in work.glob("audit.*") if file.suffix != ".processes"]
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [event for event in found if tuple(event["names"]) not in ALLOWED]


def processes(work: Path) -> int:
    """How many Python processes were watched."""
    return len((work / "audit.processes").read_text().splitlines())
