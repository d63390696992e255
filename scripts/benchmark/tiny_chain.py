"""The chain of configs/tiny.yaml with few steps: an undisturbed run, and copies of it to be disturbed."""

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.hashing import files_of, sha256_file
from scripts.benchmark.killing import LONGEST, rlhf, run
from scripts.benchmark.traces import metrics

STAGES = ("sft", "reward_model", "ppo")
STEPS = (*STAGES, "evaluation")
NAME = "tiny"
SHORT = (
    *("sft.max_steps=10", "sft.checkpoint_every=1", "sft.eval_every=4"),
    *("reward_model.max_steps=10", "reward_model.checkpoint_every=2", "reward_model.eval_every=4"),
    *("ppo.steps=6", "ppo.checkpoint_every=1", "ppo.eval_every=2"),
    *("ppo.ema_decay=0.9", "ppo.kl_controller=adaptive", "ppo.score_normalisation=running"),
)


@dataclass(frozen=True)
class TinyRun:
    """One run folder and the undisturbed one that it is to equal."""

    root: Path
    undisturbed: Path

    @property
    def folder(self) -> Path:
        return self.root / NAME

    def play(self, stage: str | None = None, kill_after: float = LONGEST) -> int | None:
        """`rlhf run`, the whole chain or one stage; its exit code, None when it was killed."""
        only = ("--only", stage) if stage else ()
        command = rlhf("run", "configs/tiny.yaml", f"run.root={self.root}", *SHORT, *only)
        return run(command, self.root / "output.txt", kill_after)

    def finish(self, stage: str | None = None) -> list[str]:
        """Run to the end; what is not as in the undisturbed run."""
        before = self.finished()
        code = self.play(stage)
        if code != 0:
            return [f"{self.root}: {'does not end' if code is None else f'exit code {code}'}"]
        bad = [
            f"{self.root}: {name} was finished and is touched" for name in before if before[name] != _marks(self, name)
        ]
        for name in [stage] if stage else STEPS:
            bad += [f"{self.folder}/{name}: other {what}" for what in self._differences(name)]
        return bad

    def finished(self) -> dict[str, dict]:
        """Size, time and digest of every file of the stages that are finished."""
        return {name: _marks(self, name) for name in STEPS if _manifest(self.folder, name).get("status") == "finished"}

    def checkpoints(self, stage: str) -> int:
        """Number of checkpoints that are there."""
        return len(list((self.folder / stage / "checkpoints").glob("step-*")))

    def _differences(self, stage: str) -> list[str]:
        mine, theirs = _manifest(self.folder, stage), _manifest(self.undisturbed, stage)
        keys = [key for key in ("status", "final_hash", "headline", "details") if mine.get(key) != theirs.get(key)]
        same_rows = metrics(self.folder / stage) == metrics(self.undisturbed / stage)
        return keys if same_rows else [*keys, "metrics.jsonl"]


@dataclass
class TinyChain:
    """Plays the stages once without disturbance, each alone, and times them."""

    work: Path
    stages: tuple[str, ...] = STEPS
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of `rlhf run --only STAGE`."""

    def __post_init__(self) -> None:
        undisturbed = TinyRun(self.work / "undisturbed", self.work / "undisturbed" / NAME)
        undisturbed.root.mkdir(parents=True)
        for stage in self.stages:
            start = time.monotonic()
            code = undisturbed.play(stage)
            assert code == 0, f"{stage} without disturbance: exit code {code}, see {undisturbed.root}/output.txt"
            self.seconds[stage] = time.monotonic() - start
        self.undisturbed = undisturbed.folder

    def copy(self, name: str, before: str = STAGES[0]) -> TinyRun:
        """A run in which the stages before one are finished."""
        root = self.work / name
        root.mkdir()
        for stage in STEPS[: STEPS.index(before)]:
            shutil.copytree(self.undisturbed / stage, root / NAME / stage)
        return TinyRun(root, self.undisturbed)


def _manifest(run: Path, stage: str) -> dict:
    file = run / stage / "stage.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _marks(run: TinyRun, stage: str) -> dict[str, tuple]:
    found = files_of(run.folder / stage)
    return {name: (path.stat().st_mtime_ns, sha256_file(path)) for name, path in found.items()}
