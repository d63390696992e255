"""What a launcher starts once per rank: it runs the stage's process and stands between it and `rlhf run`.

    python pipeline/rank.py JOB_FILE

It reports to `rlhf run`, starts the stage when all ranks have, passes output up and signals down, and ends the stage
when it is told to, when its launcher dies, or when it hears nothing any more.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.hashing import sha256_of
from pipeline.job_file import JobFile
from pipeline.lifeline import Lifeline, Lost
from pipeline.network import address_of, address_towards, free_port, interface_of
from pipeline.problems import EXIT_ENVIRONMENT, EXIT_LOST
from pipeline.redacted_output import redacted
from pipeline.signals import Relay, die_with
from pipeline.watchdog import end_with_stacks
from stages.redaction import redactor

_VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),  # torchrun
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE"),  # DeepSpeed, also with mpich and impi
    (*(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
)
_LAST_WORDS = 10.0
"""Seconds for `rlhf run` to acknowledge how the stage ended."""


@dataclass(frozen=True)
class Place:
    """Which of the ranks this is."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Place":
        """What the launcher says. Raises ValueError when it says nothing."""
        for names in _VARIABLES:
            if all(environment.get(name, "").isdecimal() for name in names):
                return cls(*(int(environment[name]) for name in names))
        raise ValueError("no launcher has set RANK and WORLD_SIZE")

    def variables(self) -> dict[str, str]:
        """The same as torch.distributed reads it."""
        values = (self.rank, self.size, self.local_rank, self.local_size)
        return dict(zip(_VARIABLES[0], map(str, values), strict=True))


class Ranked:
    """One rank's side of a job."""

    def __init__(self, job: JobFile, place: Place, line: Lifeline):
        self._job, self._place, self._line = job, place, line
        self._killed = False
        """Whether the stage ended because another rank had failed."""

    def run(self, relay: Relay) -> int:
        """Report, wait for all others, run the stage; its exit code."""
        messages = self._line.messages()
        address = self._address()
        port = self._job.master_port or free_port(address)
        self._line.send(
            hello={"rank": self._place.rank, "size": self._place.size, "host": socket.gethostname()},
            meet=[self._job.master_address or address, port],
            digest=sha256_of({name: os.environ.get(name) for name in self._job.environment}),
        )
        go = next(messages)
        if "meet" not in go:  # `rlhf run` gives this start up
            return EXIT_LOST
        environment = {**os.environ, **self._place.variables(), **self._meeting(go["meet"]), "PYTHONUNBUFFERED": "1"}
        environment.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # rank 0 opens the store, whoever launched it
        child = relay.start(self._job.command, environment, waits=True)
        over = threading.Event()
        threading.Thread(target=self._obey, args=(messages, child, over), daemon=True).start()
        for text in redacted(child.stdout, redactor()):
            self._line.send(text=text)
        code = relay.wait()
        self._line.send(exit=code, killed=self._killed)
        over.wait(_LAST_WORDS)
        return code

    def _address(self) -> str:
        head = self._job.address[0]
        return address_of(self._job.interface) if self._job.interface else address_towards(head)

    def _meeting(self, meet: tuple[str, int]) -> dict[str, str]:
        """Where the ranks meet, and over which interface: the host's name may well stand for 127.0.0.1."""
        interface = self._job.interface or interface_of(address_towards(meet[0]))
        names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if interface else ()
        named = {name: interface for name in names if name not in os.environ}
        return {"MASTER_ADDR": meet[0], "MASTER_PORT": str(meet[1]), **named}

    def _obey(self, messages, child: subprocess.Popen, over: threading.Event) -> None:
        try:
            for message in messages:
                if "signal" in message:
                    child.send_signal(message["signal"])
                elif "stacks" in message:
                    end_with_stacks(child)
                elif "end" in message:
                    self._end(child, message["end"])
                elif "bye" in message:
                    break
        except Lost as error:
            if child.poll() is None:
                child.kill()
                with suppress(OSError):  # who would read it may be gone as well
                    print(f"rank {self._place.rank}: `rlhf run` is gone ({error}), so this rank ends", flush=True)
                os._exit(EXIT_LOST)
        over.set()

    def _end(self, child: subprocess.Popen, grace: float) -> None:
        """Another rank has failed: this one may be about to tell so too, or waits for it until it is killed."""
        try:
            child.wait(grace)
        except subprocess.TimeoutExpired:
            self._killed = True
            child.kill()


def _refuse(problem: str) -> int:
    print(f"{socket.gethostname()}: {problem}", file=sys.stderr, flush=True)
    return EXIT_ENVIRONMENT


def main(path: Path) -> int:
    """Run one rank of the job in `path`; the exit code of its stage."""
    die_with(os.getppid())
    try:
        job, place = JobFile.read(path), Place.of(os.environ)
        os.chdir(job.folder)
    except FileNotFoundError as error:
        return _refuse(f"[NODE05] no {error.filename} on this host; fix: a run folder and a code that all hosts share")
    except (OSError, ValueError) as error:
        return _refuse(f"[NODE05] {path}: {error}; fix: start it again with `rlhf run`")
    os.environ.update(job.environment)
    try:
        line = Lifeline.to(job.address, bytes.fromhex(job.key), job.lost_after_s)
    except (OSError, EOFError, AuthenticationError) as error:
        told = f"{job.address[0]}:{job.address[1]}, where `rlhf run` waits: {error!r}"
        return _refuse(f"[NODE06] cannot connect to {told}; fix: open the way, or set launch.interface")
    line.tick()
    with Relay().installed() as relay:
        try:
            return Ranked(job, place, line).run(relay)
        except Lost:
            return EXIT_LOST
        except OSError as error:
            return _refuse(f"[NODE06] interface {job.interface}: {error}; fix: correct launch.interface")
        finally:
            line.close()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
