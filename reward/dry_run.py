"""Reward functions tried on a few samples, each in a process of its own: whatever it does, the caller goes on.

The process (`python -m reward.dry_run`) reads one trial as JSON and answers with the scores or with the mistake.
Imports no torch; a user's function may.
"""

import faulthandler
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from reward.base import RewardError, resolve
from reward.calls import Call, Calling, TrainerState, plain
from reward.contract import LIMIT, scores_of

IMPORT_SECONDS = 60.0
"""Seconds for the function's file and what it imports, which its own time does not count."""
_CALLING = "calling the function\n"
"""What the process says when the import is done."""
_GRACE = 2.0
"""Seconds after its time within which a process that is stuck has said where, and ended."""


@dataclass(frozen=True)
class Trial:
    """A function and the samples to call it with; without samples it is only looked up.

    `completion_ids` are the bytes of the texts here, because no tokenizer is loaded.
    """

    spec: str
    prompts: Sequence[Any] = ()
    completions: Sequence[str] = ()
    columns: Mapping[str, Sequence[Any]] | None = None
    """The other columns of the data, each a list with one value per sample."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    limit: float = LIMIT
    call: Call = "batch"
    concurrency: int = 8
    label: str | None = None
    """What to call it in a message; None = `spec`."""

    @property
    def name(self) -> str:
        """What it is called in a message."""
        return self.label or self.spec


@dataclass(frozen=True)
class Patience:
    """How long a trial may take, in seconds."""

    call: float
    imports: float = IMPORT_SECONDS


def try_all(trials: Sequence[Trial], patience: Patience) -> list[list[float | None] | RewardError]:
    """The scores of each trial, or what is wrong with the function. The trials run side by side.

    Mistakes are REW01 to REW04 as in reward.base and reward.contract, and REW05: not back in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        running = [_Running(trial, patience, Path(folder, str(i))) for i, trial in enumerate(trials)]
        try:
            return [one.outcome() for one in running]
        finally:
            for one in running:
                one.end()


class _Running:
    """A trial under way; what it is asked, answers and complains of are files."""

    def __init__(self, trial: Trial, patience: Patience, folder: Path):
        self._trial, self._patience = trial, patience
        folder.mkdir()
        self._answer, self._complaints = folder / "answer", folder / "complaints"
        (folder / "question").write_text(json.dumps({"trial": asdict(trial), "patience": asdict(patience)}))
        with (folder / "question").open() as question, self._answer.open("wb") as out:
            self._process = _start(question.fileno(), out, self._complaints)

    def outcome(self) -> list[float | None] | RewardError:
        """Waits for the answer, and not longer than the trial's time."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(self._patience.imports + self._patience.call + _GRACE)
        code = self._process.poll()
        answer, complaints = self._answer.read_text(), self._complaints.read_text(errors="replace")
        if code is None or "Timeout (" in complaints:
            return self._too_slow(complaints)
        if not answer:
            problem = f"{self._trial.name} ended its process with exit code {code} instead of returning"
            return RewardError("REW03", problem, fix="let it raise or return")
        answered = json.loads(answer)
        return answered["scores"] if "scores" in answered else RewardError(**answered)

    def end(self) -> None:
        """No process of the trial is left."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _too_slow(self, complaints: str) -> RewardError:
        file = self._trial.spec.rpartition(":")[0].rpartition("/")[2]
        lines = re.findall(r'File "(.*)", line (\d+)', complaints)
        own = [(path, line) for path, line in lines if file.endswith(".py") and path.endswith(file)] or lines
        where = f"; it is at {own[0][0]}:{own[0][1]}" if own else ""
        if _CALLING not in complaints:
            problem = f"{self._trial.name}: importing it has not ended after {self._patience.imports:g} s{where}"
            return RewardError("REW05", problem, fix="move what takes long from the file's top level into the function")
        took = f"after {self._patience.call:g} s on {len(self._trial.prompts)} samples"
        problem = f"{self._trial.name} has not returned {took}"
        return RewardError("REW05", problem + where, fix="mend it, or give it longer: check.reward_seconds")


def _start(question: int, answer: BinaryIO, complaints: Path) -> subprocess.Popen:
    package = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    with complaints.open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "reward.dry_run"],  # -P: a folder `reward` of the user is not this package
            stdin=question,
            stdout=answer,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )


def main() -> None:
    """The process of one trial."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the function prints is no answer
    asked = json.load(sys.stdin)
    patience = Patience(**asked["patience"])
    faulthandler.dump_traceback_later(patience.imports, exit=True)
    sys.path.append(os.getcwd())
    try:
        answered: dict[str, Any] = {"scores": _scores(Trial(**asked["trial"]), patience.call)}
    except RewardError as error:
        answered = {"code": error.code, "problem": error.problem, "fix": error.fix}
    json.dump(answered, answer)
    answer.close()
    faulthandler.cancel_dump_traceback_later()
    os._exit(0)  # threads of the function's libraries are not waited for


def _scores(trial: Trial, seconds: float) -> list[float | None]:
    function = resolve(trial.spec)
    if not trial.prompts:
        return []
    sys.stderr.write(_CALLING)
    sys.stderr.flush()
    faulthandler.dump_traceback_later(seconds, exit=True)
    function = plain(function, Calling(trial.arguments, trial.call, trial.concurrency))
    ids = [list(text.encode()) for text in trial.completions]
    named = {**(trial.columns or {}), "completion_ids": ids, "trainer_state": TrainerState()}
    return scores_of(trial.name, function, trial.prompts, trial.completions, named, trial.limit)


if __name__ == "__main__":
    main()
