"""What the process of a stage says when it ends early, and its exit code. Imports no torch."""

import os
import signal
import sys
import traceback

from pipeline.launch import continue_command, printable
from pipeline.problems import EXIT_DIVERGED, EXIT_ENVIRONMENT, EXIT_LOST, exit_code, exit_of
from pipeline.ranks import OtherRankEnded
from pipeline.rundir import RunDir
from reward.base import NonFiniteScore, RewardError
from stages.base import Diverged, InputError
from stages.redaction import redactor
from stages.stopping import StopRequest

EXIT_BUG = 1


def told_end(run: RunDir, stage: str, step: int, stop: StopRequest) -> int:
    """Print what an interrupted stage saved and how to go on; the exit code."""
    saved = f"the state after step {step} is saved" if step else "nothing had to be saved"
    again = printable(continue_command(run.config_file, stage))
    print(f"{stage}: stopped by {signal.Signals(stop.signal).name}, {saved}; continue with: {again}", flush=True)
    return 128 + stop.signal


def told(error: BaseException) -> int:
    """Print what a person needs to know of an error; its exit code."""
    if isinstance(error, OtherRankEnded):
        print(error, file=sys.stderr, flush=True)
        return EXIT_LOST
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
        return exit_of(error.code)
    if isinstance(error, ModuleNotFoundError):
        return EXIT_ENVIRONMENT
    return None
