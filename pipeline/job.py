"""The ranks of one stage as `rlhf run` sees them: joined, running, ended together. Imports no torch.

The launchers differ in whether they notice that a rank has failed, kill the others, leave processes behind or exit
with its code. So none of that is left to them: every rank has a line to here (pipeline/lifeline.py).
"""

import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from queue import Empty, SimpleQueue
from typing import Any

from pipeline.job_file import JobFile
from pipeline.job_log import JobLog
from pipeline.launcher_process import end_launcher, start_launcher
from pipeline.launchers import Line
from pipeline.lifeline import Lifeline, Lost
from pipeline.problems import EXIT_ENVIRONMENT, EXIT_LOST
from pipeline.redacted_output import redacted
from stages.redaction import redactor

_LAUNCHER = "launcher"
_LOOK = 0.2
_GRACE = 3.0
"""Seconds in which the other ranks may tell that they fail too, before they are killed."""
_GONE = 5.0
"""Seconds more for the ranks to be gone."""


@dataclass
class _Member:
    """A rank that has joined."""

    line: Lifeline
    host: str
    meet: tuple[str, int]
    code: int | None = None
    """Its exit code; None while it runs."""


@dataclass(frozen=True)
class _Failure:
    source: str
    told: str
    code: int


@dataclass
class Job:
    """Some ranks that are to run as one; has the verbs of a process that signals and waiting need."""

    size: int
    file: JobFile
    log: JobLog
    listener: Listener
    _members: dict[int, _Member] = field(default_factory=dict)
    _launchers: list[subprocess.Popen] = field(default_factory=list)
    _events: SimpleQueue = field(default_factory=SimpleQueue)
    _failure: _Failure | None = None
    _asked: int | None = None
    _deadline: float = float("inf")
    """When what is going on has to be over, on the monotonic clock."""

    def start(self, lines: Sequence[Line], environment: dict[str, str]) -> None:
        """Begin to wait for the ranks, and start those lines that are for here."""
        self._deadline = time.monotonic() + self.file.join_timeout_s
        self._launchers += [start_launcher(line, environment) for line in lines]
        for launcher in self._launchers:
            for follow in (self._read_launcher, self._wait_for_launcher):
                threading.Thread(target=follow, args=(launcher,), daemon=True).start()
        threading.Thread(target=self._accept, daemon=True).start()

    def complete(self) -> bool:
        """Whether all ranks have joined; until then `join_timeout_s` is the limit."""
        return len(self._members) == self.size

    def send_signal(self, number: int) -> None:
        """Pass a polite signal on to every rank; may be called in a signal handler."""
        self._events.put(partial(self._pass_on, number))

    def end_with_stacks(self) -> None:
        """Make every rank print its stacks and die."""
        self._events.put(partial(self._to_all, stacks=True))

    def wait(self) -> int:
        """Until no rank and no launcher is left; the exit code of the first rank that failed, else of rank 0."""
        while not self._over():
            with suppress(Empty):
                self._events.get(timeout=_LOOK)()
            self.log.release()
            if time.monotonic() > self._deadline:
                self._too_late()
        self.end()
        if self._failure:
            self.log.conclude(self._failure.source, self._failure.told)
            return self._failure.code
        return max(member.code for member in self._members.values())

    def end(self) -> None:
        """Hang up and see to it that no launcher is left, with what it has started on this host."""
        for member in self._members.values():
            member.line.close()
        self.listener.close()
        for launcher in self._launchers:
            end_launcher(launcher)
        with suppress(Empty):
            while True:
                self._events.get(timeout=_LOOK)()  # last words

    # What happens, one thing after the other, in the thread that waits

    def _over(self) -> bool:
        joined = self.complete() or self._failure
        return bool(joined) and all(member.code is not None for member in self._members.values())

    def _joined(self, line: Lifeline, hello: dict[str, Any]) -> None:
        place, environment = hello["hello"], hello["digest"]
        rank, source = place["rank"], _named(place["rank"], place["host"])
        refusal = self._refusal(place, environment)
        if self._failure or refusal:
            line.close()
            return refusal and self._fail(_Failure(source, refusal, EXIT_ENVIRONMENT))
        self._members[rank] = _Member(line, place["host"], tuple(hello["meet"]))
        if self.complete():
            self._deadline = float("inf")
            self._to_all(meet=self._members[0].meet)
            if self._asked:
                self._to_all(signal=self._asked)
        return None

    def _refusal(self, place: dict[str, Any], environment: str) -> str | None:
        rank, size = place["rank"], place["size"]
        if size != self.size or rank in self._members or not 0 <= rank < size:
            told = f"[NODE07] rank {rank} joined a world of {size} ranks, expected {self.size}"
            return f"{told}; fix: let one launcher start one job"
        if environment != self.file.digest:
            return f"[NODE05] rank {rank} has another environment than it was given; fix: run it again"
        return None

    def _ended(self, rank: int, code: int, killed: bool) -> None:
        member = self._members[rank]
        member.code = code
        member.line.send(bye=True)
        if code and not killed and not (self._asked and code == 128 + self._asked):
            source = _named(rank, member.host)
            told = f"rank {rank} on {member.host} was the first of {self.size} to fail, with exit code {code}"
            if self._failure and self._failure.code == EXIT_LOST != code:
                self._failure = _Failure(source, told, code)  # the one before had only missed this one
            self._fail(_Failure(source, told, code))

    def _lost(self, rank: int, why: str) -> None:
        member = self._members[rank]
        if member.code is None:
            member.code = EXIT_LOST
            told = f"[NODE08] rank {rank} on {member.host} is lost: {why}; fix: look at that host, then run again"
            failure = _Failure(_named(rank, member.host), told, EXIT_LOST)
            if self._failure and self._failure.code == EXIT_LOST:
                self._failure = failure  # the one before had only missed this one
            self._fail(failure)

    def _launcher_ended(self, launcher: subprocess.Popen) -> None:
        running = any(member.code is None for member in self._members.values())
        if not self.complete() or running:
            told = (
                f"[NODE09] the launcher ended with code {launcher.returncode} "
                f"{'while ranks were running' if running else 'before all ranks had joined'}"
            )
            code = EXIT_LOST if running else EXIT_ENVIRONMENT
            self._fail(_Failure(_LAUNCHER, f"{told}; fix: its last lines say why", code))

    def _pass_on(self, number: int) -> None:
        self._asked = self._asked or number
        if not self.complete():
            self._fail(_Failure(_LAUNCHER, "stopped before all ranks had joined", 128 + number))
        else:
            self._to_all(signal=number)

    def _fail(self, failure: _Failure) -> None:
        if self._failure is None:
            self._failure = failure
            self.log.forget()
            self._to_all(end=_GRACE)
            self._deadline = time.monotonic() + _GRACE + _GONE

    def _too_late(self) -> None:
        if self._failure is None:
            missing = ", ".join(str(rank) for rank in range(self.size) if rank not in self._members)
            told = f"[NODE10] not all ranks have started in {self.file.join_timeout_s:g} s; missing: {missing}"
            self._fail(_Failure(_LAUNCHER, f"{told}; fix: see the launcher's lines in the log", EXIT_ENVIRONMENT))
        else:  # a rank that cannot be reached any more ends by itself
            for rank in [rank for rank, member in self._members.items() if member.code is None]:
                self._lost(rank, f"it did not end in {_GRACE + _GONE:g} s")

    def _to_all(self, **message: Any) -> None:
        for member in self._members.values():
            if member.code is None:
                member.line.send(**message)

    # Threads that only report

    def _accept(self) -> None:
        while True:
            try:
                connection = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._follow, args=(connection,), daemon=True).start()

    def _follow(self, connection: Connection) -> None:
        rank = None
        try:
            line = Lifeline.accepted(connection, bytes.fromhex(self.file.key), self.file.lost_after_s)
            line.tick()
            for message in line.messages():
                if "hello" in message:
                    rank, source = message["hello"]["rank"], _named(message["hello"]["rank"], message["hello"]["host"])
                    self._events.put(partial(self._joined, line, message))
                elif "text" in message:
                    self._events.put(partial(self.log.write, source, message["text"], rank == 0))
                elif "exit" in message:
                    self._events.put(partial(self._ended, rank, message["exit"], message["killed"]))
        except (OSError, EOFError, AuthenticationError):
            connection.close()
        except Lost as error:
            if rank is not None:
                self._events.put(partial(self._lost_if_joined, rank, str(error)))

    def _lost_if_joined(self, rank: int, why: str) -> None:
        if rank in self._members:
            self._lost(rank, why)

    def _read_launcher(self, launcher: subprocess.Popen) -> None:
        for text in redacted(launcher.stdout, redactor()):
            self._events.put(partial(self.log.write, _LAUNCHER, text, False))

    def _wait_for_launcher(self, launcher: subprocess.Popen) -> None:
        launcher.wait()  # what it has started may go on, and hold its output open
        self._events.put(partial(self._launcher_ended, launcher))


def _named(rank: int, host: str) -> str:
    return f"rank {rank} {host}"
