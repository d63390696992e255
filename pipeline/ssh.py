"""Commands on other hosts by ssh, never asking for anything. Imports no torch."""

import subprocess
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pipeline.hostfile import Host
from stages.base import InputError

OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=5", "ServerAliveCountMax=3")
"""Without the last two, ssh waits for a lost host for ever."""
NO_CONNECTION = 255
_AT_ONCE = 64
T = TypeVar("T")


def ssh(host: str, command: str, told: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a shell command on a host with `told` as its input.

    Raises:
        InputError: NODE03 there is no connection; NODE19 the command has not ended in `timeout` seconds.
    """
    options = [part for option in OPTIONS for part in ("-o", option)]
    try:
        done = subprocess.run(
            ["ssh", *options, host, command], input=told, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        problem = f"{host}: no answer in {timeout:g} s"
        raise InputError("NODE19", problem, fix="look at its load and its disks, then try again") from error
    if done.returncode == NO_CONNECTION:
        problem = f"{host}: ssh exit {done.returncode}: {last_line(done.stderr) or 'connection lost'}"
        raise InputError("NODE03", problem, fix=f"let `ssh -o BatchMode=yes {host} true` work: sshd, keys, name")
    return done


def on_all(hosts: Sequence[Host], do: Callable[[Host], T]) -> list[T | InputError]:
    """What `do` returns for each host, or the mistake that it raises; at the same time, in their order."""

    def tried(host: Host) -> T | InputError:
        try:
            return do(host)
        except InputError as error:
            return error

    with ThreadPoolExecutor(min(_AT_ONCE, len(hosts))) as pool:
        return list(pool.map(tried, hosts))


def last_line(text: str) -> str:
    """The last line that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def without(hosts: Iterable[Host], gone: Iterable[str]) -> tuple[Host, ...]:
    """The hosts that are left."""
    return tuple(host for host in hosts if host.name not in set(gone))
