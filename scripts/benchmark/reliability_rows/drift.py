"""A run folder that two processes want, and inputs that changed since the checkpoint: R18, R27."""

import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.checkpoints import CheckpointManager
from pipeline.config_loading import load_config
from pipeline.drift import decide
from pipeline.lineage import inputs_of
from pipeline.rundir import RunDir
from scripts.benchmark import toy_run
from scripts.benchmark.scoreboard import Figure, Row
from stages.base import InputError

LIMIT = 2.0
"""Seconds within which a second process must be refused; counted without Python's own start."""


def refuse_second(work: Path, quick: bool) -> Figure:
    """`rlhf run` and `rlhf stage` on a folder that a living process has, then one that a killed process had."""
    run = toy_run.make(work / "run")
    holder = _holding(run)
    bad, slowest = [], 0.0
    try:
        expected = f"[RUN01] {run.path} is in use by process {holder.pid} on {platform.node()}"
        for command in (["run", str(run.config_file)], ["stage", "sft", str(run.path)]):
            code, output, seconds = _timed(command)
            slowest = max(slowest, seconds)
            if code != 2 or expected not in output or seconds > LIMIT:
                bad.append(f"{command[0]}: exit code {code} after {seconds:.2f} s: {output[-300:]}")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    code = toy_run.run_stage(run, work / "log")
    if code != 0:
        bad.append(f"after SIGKILL of the holder: exit code {code}: {(work / 'log').read_text()[-300:]}")
    found = (
        f"2 of 2 refused after {slowest:.2f} s, lock of a killed process reclaimed" if not bad else f"{len(bad)} bad"
    )
    return Figure(found, not bad, {"bad": bad})


def _holding(run: RunDir) -> subprocess.Popen:
    program = (
        "import sys, time; from pathlib import Path; from pipeline.locks import chain_lock\n"
        "with chain_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    return holder


def _timed(command: list[str]) -> tuple[int, str, float]:
    """Exit code, output and the seconds that the command itself took, behind the start of Python and its imports."""
    program = (
        "import atexit, sys, time; from pipeline import cli\n"
        "start = time.monotonic()\n"
        "atexit.register(lambda: print('seconds', time.monotonic() - start))\n"
        "cli.main(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, timeout=120)
    seconds = [line for line in done.stdout.splitlines() if line.startswith("seconds")]
    return done.returncode, done.stdout + done.stderr, float(seconds[0].split()[1]) if seconds else float("inf")


def _append(name: str, text: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        with (root / name).open("a") as file:
            file.write(text)

    return change


def _nothing(root: Path) -> None:
    """The drift is in the overrides alone."""


def _other_weights(root: Path) -> None:
    toy_run.write_weights(root / "base", 2.0)


ROW = '{"prompt": "a", "completion": " b", "chosen": " c", "rejected": " d"}\n'
DRIFTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...], str, bool]] = {
    "training data": (_append("demonstrations.jsonl", ROW), (), "data.demonstrations.train", True),
    "held-out data": (_nothing, ("data.demonstrations.eval={root}/prompts.jsonl",), "data.demonstrations.eval", True),
    "learning rate": (_nothing, ("sft.learning_rate=3e-5",), "sft.learning_rate", True),
    "schedule": (_nothing, ("sft.lr_schedule=linear",), "sft.lr_schedule", True),
    "batch size": (_nothing, ("sft.batch_size=4",), "sft.batch_size", True),
    "length": (_nothing, ("sft.max_length=16",), "sft.max_length", True),
    "number of steps": (_nothing, ("sft.max_steps=9",), "sft.max_steps", True),
    "base weights": (_other_weights, (), "base/model.safetensors", False),
    "base config": (_append("base/config.json", " "), (), "base/config.json", False),
    "tokenizer": (_append("base/tokenizer.json", " "), (), "base/tokenizer.json", False),
    "chat template": (_append("base/chat_template.jinja", "!"), (), "base/chat_template.jinja", False),
    "method": (_nothing, ("sft.tuning.method=lora",), "sft.tuning.method", False),
    "adapter shape": (_nothing, ("sft.tuning.method=lora", "sft.tuning.r=4"), "sft.tuning.r", False),
    "seed": (_nothing, ("seed=9",), "seed", False),
    "precision": (
        _nothing,
        ("model.dtype=bfloat16", "model.compute=bfloat16", "ppo.tuning.method=lora"),
        "model.dtype",
        False,
    ),
    "frozen layers": (_nothing, ("trunk.frozen_layers=1", "ppo.tuning.method=lora"), "trunk.frozen_layers", False),
}
"""What changes on the disk, in the config, the field that must be named, and whether `--allow` may accept it."""


def drift(work: Path, quick: bool) -> Figure:
    """Each change after a checkpoint: named with both values; accepted or refused with `--allow` as documented."""
    bad = []
    for name, (change, overrides, field, allowed) in DRIFTS.items():
        run = toy_run.make(work / name.replace(" ", "-"))
        root = run.path.parent.parent
        _interrupted(run)
        change(root)
        config = load_config(run.config_file, [text.format(root=root) for text in overrides])
        for allow in ((), (field,)):
            problem = _refused_wrongly(run, config, field, allow, expected=not (allow and allowed))
            bad += [f"{name} {allow}: {problem}"] if problem else []
    found = f"{len(DRIFTS) - len(bad)} of {len(DRIFTS)} drifts named by field, {len(bad)} wrong"
    return Figure(found, not bad, {"bad": bad})


def _interrupted(run: RunDir) -> None:
    """A stage with a checkpoint that did not get to its end."""
    identity = inputs_of(run, run.config(), "sft").identity
    folder = run.stage("sft")
    folder.write_manifest({"status": "running", "stage": "sft", "identity": identity.plain()})
    CheckpointManager(folder.checkpoints, 2, identity).save(3, toy_run.writer("state"))


def _refused_wrongly(run: RunDir, config, field: str, allow: tuple[str, ...], expected: bool) -> str | None:
    """What is wrong with how a drift was taken; the fields that come with it are allowed for the occasion."""
    folder = run.stage("sft")
    try:
        identity = inputs_of(run, config, "sft").identity
        verdict = decide(folder, identity, CheckpointManager(folder.checkpoints, 2, identity), allow=allow)
    except InputError as error:
        named = f"{field}: " in str(error) and " -> " in str(error) and "[CKPT04]" in str(error)
        return None if expected and named else f"refused: {error}"
    return None if not expected and verdict.decision == "resume" else f"not refused: {verdict}"


ROWS: dict[str, Row] = {
    "R18": Row(
        "a second process on the same run folder is refused with pid and host; a dead one's lock is reclaimed",
        "refused within 2 s",
        refuse_second,
    ),
    "R27": Row(
        "what changed since a checkpoint is named field by field and refused unless allowed",
        "100 % of >= 10 drifts",
        drift,
    ),
}
