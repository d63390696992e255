"""`rlhf check CONFIG --nodes hostfile`: whether every host can take part, looked at from this one. Imports no torch."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Listener
from typing import Any

from pipeline import node_probe
from pipeline.config import PipelineConfig
from pipeline.findings import Findings
from pipeline.hostfile import Host
from pipeline.job_file import new_key
from pipeline.launchers import World, world_of
from pipeline.ranked_stage import meeting_address
from pipeline.rundir import RunDir
from pipeline.same_software import LOOK_SECONDS, QUESTION, ask, differences
from pipeline.ssh import on_all
from stages.base import InputError

_REDUCE_SECONDS, _GLOO_SECONDS = 60.0, 30.0
_CLOCK_SECONDS = 10.0
_ROOM = 256 << 20
"""Bytes that temporary files and shared memory should have."""


@dataclass(frozen=True)
class Seen:
    """A host's answer, and when it was asked."""

    host: Host
    answer: dict[str, Any]
    asked: float
    answered: float

    @property
    def skew(self) -> float:
        """Seconds by which its clock is certainly ahead of ours; negative = behind."""
        now = self.answer["time"]
        return max(0.0, now - self.answered) + min(0.0, now - self.asked)


def check_nodes(config: PipelineConfig, needed: int | None, found: Findings) -> None:
    """Look at all hosts at the same time; `needed`: bytes that the run writes, None = nobody knows."""
    world = world_of(config.launch)
    with _question(config, world) as question:
        own = node_probe.look(question)
        answers = on_all(world.hosts, lambda host: _ask(host, question))
    for host, seen in zip(world.hosts, answers, strict=True):
        rooms = {**dict.fromkeys(own["free"], _ROOM), question["folder"]: _ROOM if needed is None else needed}
        errors = [seen] if isinstance(seen, InputError) else mistakes(seen, own, question["folder"], rooms)
        found.errors += errors
        if not errors:
            for line in summary(seen):
                found.passed(host.name, line)
    good = [seen for seen in answers if isinstance(seen, Seen)]
    if len(good) == len(world.hosts) and all(seen.answer["address"] for seen in good):
        found.passed("launch", _shared_line(good, question["folder"]))
        _check_sum(good, config.launch.master_port, found)


def mistakes(seen: Seen, own: dict[str, Any], folder: str, rooms: dict[str, int]) -> list[InputError]:
    """What keeps a host from taking part, compared with this one; `rooms`: bytes that have to be free in each place."""
    return [error.at(seen.host.name) for error in _mistakes(seen, own, folder, rooms)]


def _mistakes(seen: Seen, own: dict[str, Any], folder: str, rooms: dict[str, int]) -> Iterator[InputError]:
    answer = seen.answer
    yield from differences(answer, own)
    if abs(seen.skew) > _CLOCK_SECONDS:
        told = f"its clock is {abs(seen.skew):.0f} s {'ahead' if seen.skew > 0 else 'behind'}"
        yield InputError("NODE14", told, fix="set it by NTP")
    if not answer["shared"]:
        told = f"does not see what this host writes to {folder}"
        yield InputError("NODE15", told, fix="set run.root to a folder that all hosts share, as by NFS")
    for place in [place for place, room in answer["free"].items() if room < rooms[place]]:
        told = f"{place}: free {answer['free'][place]:,} bytes, needed {rooms[place]:,}"
        yield InputError("NODE16", told, fix="free space, or mount a larger one")
    if answer["network"]:
        yield InputError("NODE17", f"network: {answer['network']}", fix="open the way, or set launch.interface")
    if answer["port_taken"]:
        yield InputError("NODE17", "launch.master_port is in use", fix="another launch.master_port, or leave it out")


def summary(seen: Seen) -> Iterator[str]:
    """What was found in order, as a person reads it."""
    answer = seen.answer
    yield f"ssh, Python {answer['python']}, packages and code as here, clock within {_CLOCK_SECONDS:g} s"
    room = ", ".join(f"{bytes_ / 1e9:.1f} GB free in {place}" for place, bytes_ in answer["free"].items())
    yield f"{answer['interface']} {answer['address']}, reaches this host; {room}"


def _shared_line(seen: list[Seen], folder: str) -> str:
    own = [one.host.name for one in seen if not one.answer["shared"]]
    return f"run folder {folder}: " + (f"per node on {', '.join(own)}" if own else "shared by all hosts")


def _ask(host: Host, question: dict[str, Any]) -> Seen:
    asked = time.time()
    port = question["port"] if host.name == question["first"] else None
    answer = ask(host, "look", {**question, "port": port}, LOOK_SECONDS)
    return Seen(host, answer, asked, time.time())


def _check_sum(seen: list[Seen], port: int | None, found: Findings) -> None:
    """The sum of a megabyte over all hosts, as the ranks will do it."""
    first = seen[0].answer
    meet = [first["address"], port or first["port"]]
    common = {"meet": meet, "size": len(seen), "timeout": _GLOO_SECONDS}
    questions = {
        one.host: {**common, "rank": rank, "interface": one.answer["interface"]} for rank, one in enumerate(seen)
    }
    answers = on_all(list(questions), lambda host: ask(host, "reduce", questions[host], _REDUCE_SECONDS))
    errors = [answer for answer in answers if isinstance(answer, InputError)]
    found.errors += errors
    if not errors:
        slowest = max(answer["seconds"] for answer in answers)
        found.passed("launch", f"1 MB summed over {len(seen)} hosts in {1000 * slowest:.0f} ms, meeting at {meet[0]}")


@contextmanager
def _question(config: PipelineConfig, world: World) -> Iterator[dict[str, Any]]:
    """What every host is asked; inside, this host can be reached, and a file shows who shares its run folder."""
    folder = RunDir.at(config).path
    existing = next(parent for parent in (folder, *folder.resolve().parents) if parent.is_dir()).resolve()
    token, key = existing / f".rlhf-check-{socket.gethostname()}-{os.getpid()}", new_key()
    token.touch()
    try:
        with Listener((meeting_address(config.launch, world), 0), "AF_INET", 64, bytes.fromhex(key)) as listener:
            threading.Thread(target=_let_in, args=(listener,), daemon=True).start()
            yield {
                **QUESTION,
                "interface": config.launch.interface,
                "head": listener.address,
                "key": key,
                "token": str(token),
                "folder": str(folder),
                "port": config.launch.master_port,
                "first": world.hosts[0].name,
            }
    finally:
        token.unlink(missing_ok=True)


def _let_in(listener: Listener) -> None:
    while True:
        try:
            listener.accept().close()
        except (AuthenticationError, EOFError):
            continue
        except OSError:
            return
