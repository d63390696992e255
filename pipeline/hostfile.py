"""The hosts of a job: a strict reader of DeepSpeed's hostfile format. Imports no torch.

# name, then processes on it; the order is the order of ranks
gpu01 slots=8
gpu02 slots=8
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.problems import missing_path, raise_together
from stages.base import InputError

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:-]*[A-Za-z0-9])?")
_SLOTS = re.compile(r"slots=([1-9][0-9]{0,5})")
_FIX = "write one `<host> slots=<processes>` per line"


@dataclass(frozen=True)
class Host:
    """A machine and how many processes run on it."""

    name: str
    slots: int
    line: int = 0
    """Line in the hostfile, 1 = the first; 0 = it stands in none."""


def read_hostfile(path: str | Path) -> tuple[Host, ...]:
    """The hosts in their order.

    Raises:
        InputError: NODE01 with file and line for every malformed line, NODE02 there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("NODE02", f"hostfile: no file {str(path)!r}", fix=_nearest(path))
    text = path.read_text(encoding="utf-8", errors="replace")
    hosts, errors = [], []
    for number, line in _lines(text):
        try:
            hosts.append(_host(line, number))
        except ValueError as error:
            errors.append(InputError("NODE01", f"{path}:{number} {line!r}: {error}", fix=_FIX))
    errors += _repeated(path, hosts)
    if not hosts and not errors:
        errors.append(InputError("NODE01", f"{path}: names no host", fix=_FIX))
    raise_together(errors)
    return tuple(hosts)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines without comments, those that are left empty excluded."""
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        stripped = line.partition("#")[0].strip()
        if stripped:
            yield number, stripped


def _host(line: str, number: int) -> Host:
    """Raises ValueError saying what is wrong with the line."""
    name, *rest = line.split()
    if not _NAME.fullmatch(name):
        raise ValueError(f"found host {name!r}, expected a host name or address")
    if len(rest) != 1:
        found = f"found {' '.join(rest)!r} after the host" if rest else "found no slots"
        raise ValueError(f"{found}, expected slots=<n>")
    slots = _SLOTS.fullmatch(rest[0])
    if not slots:
        raise ValueError(f"found {rest[0]!r}, expected slots=<n> with a whole number of at least 1")
    return Host(name, int(slots[1]), number)


def _repeated(path: Path, hosts: list[Host]) -> Iterator[InputError]:
    first: dict[str, int] = {}
    for host in hosts:
        earlier = first.setdefault(host.name, host.line)
        if earlier != host.line:
            problem = f"{path}:{host.line} '{host.name}': already named in line {earlier}"
            yield InputError("NODE01", problem, fix="keep one of them, with the sum of the slots")


def _nearest(path: Path) -> str:
    return str(missing_path(path, "hostfile")).rpartition("; fix: ")[2]
