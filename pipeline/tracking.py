"""Where metrics and samples go: JSON lines always, W&B when configured. Alone in importing wandb."""

import json
import math
import netrc
import os
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO
from urllib.parse import urlsplit

from pipeline.config import TrackingConfig
from stages.base import Tracker
from stages.durable import write_json
from stages.redaction import redactor

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"


@dataclass(frozen=True)
class TrackedStage:
    """What trackers need to know of the stage they record."""

    folder: Path
    stage: str
    group: str
    """Name of the pipeline run."""
    config: Mapping[str, Any]
    resume_step: int | None
    """The step the stage goes on from, None when it starts."""


def open_tracker(settings: TrackingConfig, tracked: TrackedStage) -> "Trackers":
    """The trackers of one stage: its JSONL files, and when configured a W&B run in the run's group."""
    members: list[ClosableTracker] = [JsonlTracker(tracked.folder, tracked.resume_step)]
    if settings.wandb != "disabled":
        members.append(WandbTracker(settings, tracked))
    return Trackers(members)


class ClosableTracker(Tracker, Protocol):
    """A tracker that has to be told the end."""

    def close(self, failed: bool = False) -> None: ...


class Trackers:
    """Several trackers as one."""

    def __init__(self, members: Sequence[ClosableTracker]):
        self.members = members

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """One row of metrics for `step`."""
        for member in self.members:
            member.log(metrics, step)

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Decoded samples of `step`."""
        for member in self.members:
            member.samples(rows, step)

    def close(self, failed: bool = False) -> None:
        """Flush and end; safe to call once, whatever happened before."""
        for member in self.members:
            member.close(failed)


class JsonlTracker:
    """Rows of metrics.jsonl and samples.jsonl, on disk as soon as they are logged.

    Rows beyond the step from which a stage resumes are dropped first, since they will be logged again. Those up to it
    stay: what a resumed stage measures a second time (before it trains, or after its last checkpoint) is no new row.
    """

    def __init__(self, folder: Path, resume_step: int | None):
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics, kept_metrics = _reopened(folder / METRICS, resume_step)
        self._samples, kept_samples = _reopened(folder / SAMPLES, resume_step)
        self._logged = {(row["step"], frozenset(row) - {"time"}) for row in kept_metrics}
        again = (row for row in kept_samples if row["step"] in (0, resume_step))
        self._sampled = {json.dumps(row, ensure_ascii=False) for row in again}

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one row, unless the step has one of the same metrics; a value that is not finite becomes null."""
        measured = (step, frozenset(metrics) | {"step"})
        if measured in self._logged:
            return
        self._logged.add(measured)
        row = {"step": step, "time": time.time(), **{name: _number(value) for name, value in metrics.items()}}
        self._metrics.write(json.dumps(row, allow_nan=False) + "\n")
        self._metrics.flush()

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Append one row per sample, unless it was there when the stage resumed."""
        for row in rows:
            plain = {name: _plain(value) for name, value in row.items()}
            line = json.dumps({"step": step, **plain}, ensure_ascii=False)
            line = redactor().values(line)  # a text's own look of a secret stays
            if line not in self._sampled:
                self._samples.write(line + "\n")
        self._samples.flush()

    def close(self, failed: bool = False) -> None:
        """Close both files."""
        self._metrics.close()
        self._samples.close()


class WandbTracker:
    """One W&B run per stage. Whatever W&B does, training goes on; the JSONL files have everything."""

    def __init__(self, settings: TrackingConfig, tracked: TrackedStage):
        self._run: Any = None
        self._guard(lambda: self._start(settings, tracked))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send one row; `step` is the axis of every metric."""
        if self._run:
            self._guard(lambda: self._run.log({"step": step, **metrics}))

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Send the samples as a table."""
        if self._run and rows:
            self._guard(lambda: self._send_table(rows, step))

    def close(self, failed: bool = False) -> None:
        """End the W&B run."""
        if self._run:
            self._guard(lambda: self._run.finish(exit_code=int(failed)))

    def _start(self, settings: TrackingConfig, tracked: TrackedStage) -> None:
        import wandb

        mode = wandb_mode(settings.wandb)
        run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=tracked.group,
            name=f"{tracked.group}/{tracked.stage}",
            job_type=tracked.stage,
            id=_run_id(tracked),
            resume="allow",
            mode=mode,
            dir=str(tracked.folder),
            config=redactor().tree(tracked.config),
            settings=wandb.Settings(console="off", silent=True, init_timeout=60, save_code=False, disable_code=True),
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        self._run, self._table = run, wandb.Table
        if mode == "offline":
            where = Path(run.dir).parent
            print(f"[WB01] W&B logs offline to {where}; later: wandb sync {shlex.quote(str(where))}")

    def _send_table(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        columns = list(rows[0])
        data = [[_without_secrets(_plain(row.get(column))) for column in columns] for row in rows]
        self._run.log({"step": step, "samples": self._table(columns=columns, data=data)})

    def _guard(self, action: Callable[[], None]) -> None:
        """Do it; the first failure is told once and ends W&B for this stage, not the training."""
        try:
            action()
        except Exception as error:
            self._run = None
            cause = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"[WB02] W&B stopped ({cause}); training goes on and metrics.jsonl has every row")


def _run_id(tracked: TrackedStage) -> str:
    """The id kept in the stage folder when the stage resumes, else a new one."""
    store = tracked.folder / "wandb.json"
    if tracked.resume_step is not None and store.is_file():
        return json.loads(store.read_text(encoding="utf-8"))["id"]
    run_id = secrets.token_hex(8)
    write_json(store, {"id": run_id})
    return run_id


def wandb_mode(wanted: str) -> str:
    """auto is online when a key is at hand or a person who can give one, else offline."""
    if wanted != "auto":
        return wanted
    return "online" if _has_key() or sys.stdin.isatty() else "offline"


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc().authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _reopened(path: Path, resume_step: int | None) -> tuple[TextIO, list[dict[str, Any]]]:
    """The file for appending, holding only whole rows up to the step, and these rows."""
    kept: list[str] = []
    if resume_step is not None and path.is_file():
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _is_before(line, resume_step)]
    aside = path.with_name(f".{path.name}")
    aside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(aside, path)
    return path.open("a", encoding="utf-8"), [json.loads(line) for line in kept]


def _is_before(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):  # a row that was cut off
        return False


def _number(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _without_secrets(value: Any) -> Any:
    return redactor().values(value) if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    """Numbers of array libraries as Python's, what JSON cannot hold as text."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return _number(value)
    return value if value is None or isinstance(value, str | int | bool | list | dict) else str(value)
