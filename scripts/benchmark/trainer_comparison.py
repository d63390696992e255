"""The same disturbances on transformers' Trainer as it is, and with this project's checkpoints under it.

`python -m scripts.benchmark.reliability compare` runs it and writes the second table of docs/reliability.md.
"""

import json
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from scripts.benchmark.killing import LONGEST, run

KILLED_FOLDERS = 40
FLIPPED = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
FLIPS_PER_FILE = 8
STEPS = 6
KILLED_WITHIN = 2.0
"""Seconds after its first checkpoint within which a training is killed; it saves several times in them."""


@dataclass(frozen=True)
class Training:
    """One output folder of plain_trainer."""

    folder: Path
    sealed: bool

    def play(self, steps: int, *more: str, kill_after: float = LONGEST, ready: Callable[[], bool] | None = None) -> int:
        """Train up to a step; the exit code, -9 when killed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        store = ("--sealed",) if self.sealed else ()
        command = [sys.executable, "-m", "scripts.benchmark.plain_trainer", str(self.folder), str(steps), *store, *more]
        code = run(command, self.folder / "output.txt", kill_after, ready=ready)
        return -9 if code is None else code

    def outcome(self) -> dict:
        """What the last finished training left."""
        return json.loads((self.folder / "outcome.json").read_text())

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Steps and folders of what looks like checkpoints, oldest first."""
        pattern = "checkpoints/step-*" if self.sealed else "checkpoint-*"
        return sorted((int(path.name.rpartition("-")[2]), path) for path in self.folder.glob(pattern))

    def copy(self, name: str) -> "Training":
        """Another folder with the same content."""
        shutil.copytree(self.folder, self.folder.with_name(name))
        return Training(self.folder.with_name(name), self.sealed)

    def reason(self) -> str:
        """The error that ended it, without what is particular to one folder."""
        lines = [line for line in (self.folder / "output.txt").read_text().splitlines() if line.strip()]
        return re.sub(r"/\S*/|\d+", "...", lines[-1])[:100]


def killed(work: Path, sealed: bool) -> dict[str, Any]:
    """How many output folders cannot go on after a SIGKILL at a random instant of the training."""
    instants, reasons = random.Random(7), Counter()
    for number in range(KILLED_FOLDERS):
        training = Training(work / f"killed-{number}", sealed)
        training.play(
            10_000, kill_after=instants.uniform(0, KILLED_WITHIN), ready=lambda t=training: bool(t.checkpoints())
        )
        reached = training.checkpoints()[-1][0]
        if training.play(reached + 2, "--resume") != 0:
            reasons[training.reason()] += 1
        shutil.rmtree(training.folder)
    return {"cannot resume": reasons.total(), "of": KILLED_FOLDERS, "reasons": dict(reasons)}


def flipped(whole: Training) -> dict[str, Any]:
    """What happens when one bit of the newest checkpoint is not what it was: refused, or loaded as if nothing was."""
    bits, outcomes = random.Random(8), Counter()
    for file, number in product(FLIPPED, range(FLIPS_PER_FILE)):
        training = whole.copy(f"flipped-{number}-{file}")
        target = training.checkpoints()[-1][1] / file
        content = bytearray(target.read_bytes())
        content[bits.randrange(len(content))] ^= 1 << bits.randrange(8)
        target.write_bytes(content)
        outcomes[_after_a_flip(training, target)] += 1
        shutil.rmtree(training.folder)
    return dict(outcomes)


def _after_a_flip(training: Training, target: Path) -> str:
    code = training.play(STEPS + 1, "--resume")
    if code != 0:
        return "stopped"
    return "loaded" if training.outcome()["from"] == str(target.parent) else "older one taken"


def exact(work: Path, sealed: bool) -> tuple[Training, dict[str, int]]:
    """A training of some steps, and from how many of them a resumed one ends with its weights and its log."""
    whole = Training(work / "whole", sealed)
    assert whole.play(STEPS, "--keep", "99") == 0, whole.reason()
    expected, found = whole.outcome(), Counter()
    for step in range(1, STEPS):
        stopped = whole.copy(f"stopped-{step}")
        for number, path in stopped.checkpoints():
            if number > step:
                shutil.rmtree(path)
        assert stopped.play(STEPS, "--resume") == 0, stopped.reason()
        outcome = stopped.outcome()
        found["weights"] += outcome["weights"] == expected["weights"]
        found["log"] += outcome["log"] == expected["log"]
        shutil.rmtree(stopped.folder)
    for _, path in whole.checkpoints()[:-2]:
        shutil.rmtree(path)
    return whole, {"of": STEPS - 1, "weights": found["weights"], "log": found["log"]}


def compare(work: Path, file: Path) -> None:
    """All three, without and with what our stages add; what `file` has already is not measured again."""
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name, sealed in (("Trainer", False), ("Trainer in our stages", True)):
        if name not in found:
            whole, same = exact(work / name, sealed)
            found[name] = {"exact": same, "flipped": flipped(whole), "killed": killed(work / name, sealed)}
            file.write_text(json.dumps(found, indent=2), encoding="utf-8")
        print(name, json.dumps(found[name]), flush=True)


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, one column per kind of checkpoint."""
    lines = [["", *found], ["---"] * (len(found) + 1)]
    lines.append(
        ["output folders that cannot resume after SIGKILL at a random instant"]
        + [f"{f['killed']['cannot resume']} of {f['killed']['of']}" for f in found.values()]
    )
    lines.append(
        ["one flipped bit in the newest checkpoint"]
        + [", ".join(f"{outcome}: {n}" for outcome, n in sorted(f["flipped"].items())) for f in found.values()]
    )
    for what in ("weights", "log"):
        lines.append(
            [f"resumed from each step: the same {what}"]
            + [f"{f['exact'][what]} of {f['exact']['of']}" for f in found.values()]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
