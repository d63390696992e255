"""Several reward models of one stage, trained one after another: the services of each, and what waits when it is done.

They share the stage's steps and its store of checkpoints: step s of a member is the stage's step `before + s`, where
`before` counts the steps of the members before it. So a stop, a checkpoint and a logged row mean what they do for one.
Imports no torch.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stages.base import Checkpoints, StageContext, Tracker
from stages.durable import delete_folder, write_json
from stages.stopping import Interrupted

FOLDER = "members"
"""In the stage: where finished members wait. In `final/`: where all but the first lie."""
_RECORD = "member.json"


@dataclass(frozen=True)
class Finished:
    """What is known of a member that has been trained."""

    steps: int
    """Optimizer steps that it took."""
    parameters: Mapping[str, int]
    """Counts of what it trains, as `announce_parameters` gives them."""
    files: Mapping[str, str]
    """sha256 of each file of its model, by name."""


@dataclass(frozen=True)
class Member:
    """One reward model among several; `number` counts from 1."""

    number: int
    before: int
    """Optimizer steps of the members before it."""
    stage: StageContext

    @property
    def context(self) -> StageContext:
        """Its services: a folder and a seed of its own, its metrics apart from the first member's."""
        prefix = "" if self.number == 1 else f"member_{self.number}/"
        return replace(
            self.stage,
            folder=self.stage.folder / FOLDER / str(self.number),
            tracker=_Tracker(self.stage.tracker, self.before, prefix),
            checkpoints=_Checkpoints(self.stage.checkpoints, self.before, self.number),
            seed=self.stage.seed + self.number - 1,
        )

    @property
    def final(self) -> Path:
        """Its model, until all are done."""
        return self.context.folder / "final"

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Inside, a stop tells the stage's step."""
        try:
            yield
        except Interrupted as end:
            raise Interrupted(self.before + end.step) from end

    def finish(self, steps: int, parameters: Mapping[str, int]) -> Finished:
        """Record that its model is complete; from here on no attempt trains it again. All ranks call together."""
        record = asdict(Finished(steps, parameters, _digests(self.final))) if self._main else None
        if record:
            write_json(self.context.folder / _RECORD, record)
        record = self.stage.world.agreed(record)
        self.stage.checkpoints.save(self.before + steps, lambda folder: _own(folder, self.number, finished=True))
        return Finished(**record)

    def finished(self) -> Finished | None:
        """What an earlier attempt recorded of it, if its files are as they were; the same on all ranks."""
        latest = self.stage.checkpoints.latest()
        found = self.stage.world.agreed(_read(self.context.folder / _RECORD) if self._main else None)
        if not found or latest is None or latest[0] < self.before + found["steps"]:
            return None
        unchanged = self.stage.world.agreed(self._main and _digests(self.final) == found["files"])
        if not unchanged:
            print(
                f"{self.final} differs from what was written there; member {self.number} is trained again", flush=True
            )
        return Finished(**found) if unchanged else None

    @property
    def _main(self) -> bool:
        return self.stage.world.main


def gather(members: Sequence[Member], final: Path) -> list[Path]:
    """Fill `final` with the members' models: the first as if it were alone, the others below it. Their folders."""
    targets = [final if m.number == 1 else final / FOLDER / str(m.number) for m in members]
    for member, target in zip(members, targets, strict=True):
        shutil.copytree(member.final, target, dirs_exist_ok=True, copy_function=_link)
    return targets


def folders_of(final: Path) -> list[Path]:
    """The folders of all reward models in a `final/`, itself first."""
    others = (final / FOLDER).iterdir() if (final / FOLDER).is_dir() else ()
    return [final, *sorted((path for path in others if path.name.isdigit()), key=lambda path: int(path.name))]


def conclude(stage: StageContext, steps: int, outcome: Mapping[str, Any]) -> None:
    """Keep what the finished stage reports, then let go of the members' own folders. All ranks call together."""
    stage.checkpoints.save(steps, lambda folder: write_json(folder / _RECORD, {"outcome": outcome}))
    if stage.world.main:
        _let_go(stage.folder / FOLDER)


def concluded(stage: StageContext) -> Mapping[str, Any] | None:
    """What an earlier attempt kept by `conclude`, where its `final/` is still there."""
    latest = stage.checkpoints.latest()
    if latest is None or not (stage.folder / "final").is_dir():
        return None
    outcome = _read(latest[1] / _RECORD).get("outcome")
    if outcome and stage.world.main:
        _let_go(stage.folder / FOLDER)
    return outcome


def _let_go(folder: Path) -> None:
    """Remove what members left but the dumps of batches that were not finite, which the log names."""
    for item in [item for member in sorted(folder.glob("*")) for item in member.iterdir()]:
        if item.name != "diverged":
            delete_folder(item)
    for empty in [*folder.glob("*"), folder]:
        with suppress(OSError):
            empty.rmdir()


@dataclass(frozen=True)
class _Tracker:
    """The stage's tracker as a member sees it."""

    inner: Tracker
    before: int
    prefix: str

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        named = {f"{stage}/{self.prefix}{name}": v for k, v in metrics.items() for stage, _, name in [k.partition("/")]}
        self.inner.log(named, self.before + step)

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        self.inner.samples(rows, self.before + step)


@dataclass(frozen=True)
class _Checkpoints:
    """The stage's store as a member sees it: it finds its own checkpoints alone."""

    inner: Checkpoints
    before: int
    number: int

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        def signed(folder: Path) -> None:
            write(folder)
            _own(folder, self.number, finished=False)

        return self.inner.save(self.before + step, signed)

    def latest(self) -> tuple[int, Path] | None:
        found = self.inner.latest()
        if found is None or _read(found[1] / _RECORD) != {"member": self.number, "finished": False}:
            return None
        return found[0] - self.before, found[1]


def _own(folder: Path, number: int, finished: bool) -> None:
    write_json(folder / _RECORD, {"member": number, "finished": finished})


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _link(source: str, target: str) -> str:
    """A second name for a file where the disk has such, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
