"""What `rlhf stage NAME RUN_DIR` does: one stage in this process, from its run folder to its manifest."""

import ctypes
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.attempt import Attempt, fail_from_outside
from pipeline.checkpoints import CheckpointManager
from pipeline.config import PipelineConfig
from pipeline.config_loading import plain
from pipeline.drift import Verdict, decide
from pipeline.identity import Identity, listed
from pipeline.launch import continue_command, printable
from pipeline.lineage import StageInputs, inputs_of
from pipeline.parents import verify_unchanged
from pipeline.problems import EXIT_DIVERGED, EXIT_ENVIRONMENT, EXIT_INPUT, exit_code
from pipeline.rundir import RunDir, StageDir
from pipeline.signals import end_with_parent, listening
from pipeline.storage import bytes_needed, full_error, is_full
from pipeline.tracking import TrackedStage, Trackers, open_tracker
from pipeline.watchdog import watched
from reward.base import NonFiniteScore, RewardError
from stages.base import Diverged, InputError, StageContext, StageResult
from stages.durable import sweep
from stages.pulse import Pulse
from stages.redaction import redactor
from stages.stopping import Interrupted, StopRequest

EXIT_BUG = 1
_M_MMAP_THRESHOLD, _LARGE = -3, 1 << 20


def run_stage(run: RunDir, stage: str, force: bool = False, allow: Collection[str] = ()) -> int:
    """Run one stage unless it is finished and unchanged; returns the exit code of the process.

    Raises:
        InputError: parents or data do not fit; CKPT04 and CKPT05 as in pipeline.drift.
    """
    end_with_parent()
    stop, pulse, folder = StopRequest(), Pulse(), run.stage(stage)
    with listening(stop):
        config, wishes = run.config(), _Wishes(force, allow)
        with watched(stage, pulse, folder.path, config.run.hang_timeout_s, partial(fail_from_outside, folder)):
            return _run_stage(run, config, stage, wishes, stop, pulse)


@dataclass(frozen=True)
class _Wishes:
    """What the user says of an earlier attempt."""

    force: bool
    allow: Collection[str]


def _run_stage(
    run: RunDir, config: PipelineConfig, stage: str, wishes: _Wishes, stop: StopRequest, pulse: Pulse
) -> int:
    inputs = inputs_of(run, config, stage)
    _name_accelerator()
    _return_freed_memory()
    folder = run.stage(stage)
    checkpoints = _checkpoints(folder, config, inputs.identity)
    verdict = decide(folder, inputs.identity, checkpoints, wishes.force, wishes.allow)
    if verdict.decision == "skip":
        print(f"{stage}: finished and unchanged")
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
    context = StageContext(folder.path, tracker, checkpoints, config.seed, stop, pulse)
    failed = True
    try:
        if stage == "evaluation":
            attempt.finish_evaluation(_run_evaluation(config, inputs, context))
        else:
            attempt.finish(_TRAINING[stage](config, inputs, context), run.hashes())
        failed = False
    except Interrupted as end:
        attempt.interrupt(end.step)
        return _told_end(run, stage, end.step, stop)
    except Exception as error:
        if is_full(error):
            error = _make_room(folder, config, error)
        with suppress(OSError):  # a full disk keeps the record that the stage was running, which resumes as well
            attempt.fail(f"{type(error).__name__}: {error}")
        return _told(error)
    finally:
        with suppress(OSError):
            tracker.close(failed)
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
    from stages.models.precision import emulates_bfloat16

    if config.model.compute == "bfloat16" and emulates_bfloat16():
        print(
            "note: this processor has no instructions for bfloat16 and emulates them, slower than float32; "
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


# The stages' modules import torch, so each is imported only by the process that runs it.


def _run_sft(config: PipelineConfig, inputs: StageInputs, context: StageContext) -> StageResult:
    from stages.sft.stage import run_sft

    data = inputs.data
    return run_sft(
        config.sft, config.model, data["demonstrations.train"], data.get("demonstrations.eval"), context, config.trunk
    )


def _run_reward_model(config: PipelineConfig, inputs: StageInputs, context: StageContext) -> StageResult:
    from stages.classification import read_sft_rows
    from stages.reward_model.stage import run_reward_model

    data = inputs.data
    shown = next((path for role, path in data.items() if role.startswith("demonstrations")), None)
    return run_reward_model(
        config.reward_model,
        config.model,
        train=data["preferences.train"],
        eval=data.get("preferences.eval"),
        sft=inputs.parents.get("sft"),
        context=context,
        demonstrations=read_sft_rows(shown, config.sft) if shown else [],
        trunk=config.trunk,
    )


def _run_ppo(config: PipelineConfig, inputs: StageInputs, context: StageContext) -> StageResult:
    from stages.ppo.stage import run_ppo

    return run_ppo(
        config.ppo,
        config.model,
        prompts=inputs.data["prompts.train"],
        eval_prompts=inputs.data.get("prompts.eval"),
        demonstrations=inputs.data.get("demonstrations.train"),
        terms=config.reward,
        sft=inputs.parents.get("sft"),
        reward_model=inputs.parents.get("reward_model"),
        context=context,
        trunk=config.trunk,
    )


def _run_evaluation(config: PipelineConfig, inputs: StageInputs, context: StageContext) -> dict[str, Any]:
    from stages.evaluation import run_evaluation

    return run_evaluation(
        config.evaluation,
        config.ppo,
        config.model,
        prompts=inputs.data["prompts.eval"],
        terms=config.reward,
        sft=inputs.parents.get("sft"),
        policy=inputs.parents.get("ppo"),
        reward_model=inputs.parents.get("reward_model"),
        context=context,
        trunk=config.trunk,
    )


_TRAINING: Mapping[str, Callable[[PipelineConfig, StageInputs, StageContext], StageResult]] = {
    "sft": _run_sft,
    "reward_model": _run_reward_model,
    "ppo": _run_ppo,
}


def _told_end(run: RunDir, stage: str, step: int, stop: StopRequest) -> int:
    """Print what an interrupted stage saved and how to go on; the exit code."""
    saved = f"the state after step {step} is saved" if step else "nothing had to be saved"
    again = printable(continue_command(run.config_file, stage))
    print(f"{stage}: stopped by {signal.Signals(stop.signal).name}, {saved}; continue with: {again}", flush=True)
    return 128 + stop.signal


def _told(error: BaseException) -> int:
    """Print what a person needs to know of an error; its exit code."""
    expected = _expected_exit(error)
    if expected is None or os.environ.get("RLHF_DEBUG"):
        print(redactor().text("".join(traceback.format_exception(error))), file=sys.stderr, flush=True)
        return expected or EXIT_BUG
    told = str(error) if str(error).startswith("[") else f"{type(error).__name__}: {error}"
    print(redactor().text(told), flush=True)
    return expected


def _expected_exit(error: BaseException) -> int | None:
    if isinstance(error, InputError):
        return exit_code(error)
    if isinstance(error, (Diverged, NonFiniteScore)):
        return EXIT_DIVERGED
    if isinstance(error, RewardError):
        return EXIT_INPUT
    if isinstance(error, ModuleNotFoundError):
        return EXIT_ENVIRONMENT
    return None
