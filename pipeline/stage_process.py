"""What `rlhf stage NAME RUN_DIR` does: one stage in this process, from its run folder to its manifest."""

import ctypes
import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from pipeline.attempt import Attempt, fail_from_outside
from pipeline.checkpoints import CheckpointManager
from pipeline.config import PipelineConfig
from pipeline.config_loading import plain
from pipeline.drift import Verdict, decide
from pipeline.identity import Identity, listed
from pipeline.lineage import inputs_of
from pipeline.parents import verify_unchanged
from pipeline.ranks import Ranks
from pipeline.rundir import RunDir, StageDir
from pipeline.signals import end_with_parent, listening
from pipeline.stage_calls import TRAINING, run_evaluation
from pipeline.stage_endings import told, told_end
from pipeline.storage import bytes_needed, full_error, is_full
from pipeline.tracking import TrackedStage, Trackers, open_tracker
from pipeline.watchdog import watched
from stages.base import InputError, StageContext
from stages.durable import sweep
from stages.pulse import Pulse
from stages.stopping import Interrupted, StopRequest

_M_MMAP_THRESHOLD, _LARGE = -3, 1 << 20


def run_stage(run: RunDir, stage: str, force: bool = False, allow: Collection[str] = ()) -> int:
    """Run one stage unless it is finished and unchanged; returns the exit code of the process.

    Raises:
        InputError: parents or data do not fit; CKPT04 and CKPT05 as in pipeline.drift.
    """
    end_with_parent()
    stop, pulse, config = StopRequest(), Pulse(), run.config()
    ranks, fail = Ranks.from_environment(config.run.hang_timeout_s), partial(fail_from_outside, run.stage(stage))
    ranks.quieten()
    with listening(stop):
        job = _Job(run, config, stage, force, allow, stop, pulse, ranks)
        with watched(stage, pulse, job.folder.path, config.run.hang_timeout_s, fail):
            if not ranks.world.alone:
                _name_accelerator()
                ranks.join(stop)
            return _lead(job) if ranks.world.main else _follow(job)


@dataclass(frozen=True)
class _Job:
    """One stage in this process, as it was asked for."""

    run: RunDir
    config: PipelineConfig
    stage: str
    force: bool
    allow: Collection[str]
    stop: StopRequest
    pulse: Pulse
    ranks: Ranks

    @property
    def folder(self) -> StageDir:
        return self.run.stage(self.stage)

    def context(self, tracker: Trackers, checkpoints: CheckpointManager) -> StageContext:
        store, world = self.ranks.store(checkpoints), self.ranks.world
        return StageContext(self.folder.path, tracker, store, self.config.seed, self.stop, self.pulse, world)


def _lead(job: _Job) -> int:
    """The stage as rank 0 or as the only rank runs it: it decides, keeps the records and tells."""
    config, stage, folder, world = job.config, job.stage, job.folder, job.ranks.world
    inputs = inputs_of(job.run, config, stage)  # what is wrong with them is told before torch is imported
    _name_accelerator()
    _return_freed_memory()
    checkpoints = _checkpoints(folder, config, inputs.identity)
    verdict = decide(folder, inputs.identity, checkpoints, job.force, job.allow)
    if verdict.decision == "skip":
        print(f"{stage}: finished and unchanged")
        world.agreed("skip")
        return 0
    verify_unchanged(inputs.parents)
    _tell_slow_arithmetic(config)
    if verdict.decision == "new":
        folder.clear()
    folder.sweep()
    checkpoints.sweep()
    _tell_changes(stage, verdict)
    attempt = Attempt(folder, stage, inputs, verdict.allowed)
    tracker = _tracker(folder, config, checkpoints)
    failed = True
    try:
        world.agreed("run")
        context = job.context(tracker, checkpoints)
        if stage == "evaluation":
            attempt.finish_evaluation(run_evaluation(config, inputs, context))
        else:
            attempt.finish(TRAINING[stage](config, inputs, context), job.run.hashes())
        failed = False
    except Interrupted as end:
        attempt.interrupt(end.step)
        return told_end(job.run, stage, end.step, job.stop)
    except Exception as error:
        if is_full(error):
            error = _make_room(folder, config, error)
        error = job.ranks.cause(error)
        with suppress(OSError):  # a full disk keeps the record that the stage was running, which resumes as well
            attempt.fail(f"{type(error).__name__}: {error}")
        return told(error)
    finally:
        with suppress(OSError):
            tracker.close(failed)
    return 0


def _follow(job: _Job) -> int:
    """The stage as every other rank runs it: it computes its share and leaves deciding, recording and telling."""
    inputs = inputs_of(job.run, job.config, job.stage)
    _return_freed_memory()
    try:
        if job.ranks.world.agreed(None) == "skip":
            return 0
        checkpoints = _checkpoints(job.folder, job.config, inputs.identity)
        TRAINING[job.stage](job.config, inputs, job.context(Trackers([]), checkpoints))
    except Interrupted:
        return 128 + job.stop.signal
    except Exception as error:
        return told(job.ranks.cause(error))
    return 0


def _make_room(folder: StageDir, config: PipelineConfig, error: Exception) -> InputError:
    """Remove all that is half written after the disk became full; what to tell the user."""
    run = RunDir(folder.path.parent)
    for path in (folder.path, folder.checkpoints):
        sweep(path)
    shutil.rmtree(folder.path / ".trainer", ignore_errors=True)
    return full_error(error, run.path, bytes_needed(config, run))


def _name_accelerator() -> None:
    """Tell DeepSpeed, which transformers' libraries import where it is installed, what it would ask and announce."""
    import torch

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")


def _tell_slow_arithmetic(config: PipelineConfig) -> None:
    from stages.models.precision import emulates

    compute = config.model.compute
    if emulates(compute):
        print(
            f"note: products in {compute} are emulated on this processor, slower than in float32; "
            "model.dtype=float32 model.compute=float32 is faster here, with slightly other results",
            flush=True,
        )


def _return_freed_memory() -> None:
    """Give large freed tensors back to the system at once, on Linux with glibc.

    By itself glibc raises its threshold to 32 MB as tensors are freed, and keeps what is below in a heap that
    fragments: 80 MB in PPO on SmolLM2, at the same speed (scripts/benchmark/ppo_memory.py).
    """
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
    except (AttributeError, OSError, TypeError):  # another C library
        return


def _tell_changes(stage: str, verdict: Verdict) -> None:
    if verdict.note:
        print(f"{stage} {verdict.note}:\n{listed(verdict.changed)}", flush=True)


def _checkpoints(folder: StageDir, config: PipelineConfig, identity: Identity) -> CheckpointManager:
    keep = getattr(getattr(config, folder.path.name), "keep_checkpoints", 1)
    return CheckpointManager(folder.checkpoints, keep, identity)


def _tracker(folder: StageDir, config: PipelineConfig, checkpoints: CheckpointManager) -> Trackers:
    latest = checkpoints.latest()
    tracked = TrackedStage(
        folder=folder.path,
        stage=folder.path.name,
        group=config.run.name,
        config=plain(config),
        resume_step=latest[0] if latest else None,
    )
    return open_tracker(config.tracking, tracked)
