"""Whether the hosts have the Python, packages and source files of this one. Imports no torch."""

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline import node_probe
from pipeline.hostfile import Host
from pipeline.problems import raise_together
from pipeline.rundir import VERSIONED
from pipeline.ssh import last_line, on_all, ssh
from stages.base import InputError

PROBE = str(Path(node_probe.__file__).resolve())
QUESTION = {"packages": VERSIONED}
LOOK_SECONDS = 60.0
_NO_CODE, _NO_PYTHON = 90, 91


def unfit(hosts: Sequence[Host]) -> dict[str, InputError]:
    """The hosts that cannot be reached, or have other software than this one, with why: NODE03, NODE11-13, NODE19."""
    own = node_probe.software(QUESTION)
    found = on_all(hosts, lambda host: _require_same(host, own))
    return {host.name: error for host, error in zip(hosts, found, strict=True) if isinstance(error, InputError)}


def _require_same(host: Host, own: Mapping[str, Any]) -> None:
    answer = ask(host, "software", QUESTION, LOOK_SECONDS)
    raise_together([error.at(host.name) for error in differences(answer, own)])


def differences(answer: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[InputError]:
    """What a host has otherwise than this one."""
    if answer["python"] != own["python"]:
        told = f"Python: found {answer['python']}, here {own['python']}"
        yield InputError("NODE11", told, fix="one environment for all hosts, at the same path")
    for name, version in own["packages"].items():
        if answer["packages"][name] != version:
            told = f"package {name}: found {answer['packages'][name] or 'none'}, here {version}"
            yield InputError("NODE12", told, fix=f"pip install '{name}=={version}' there, or share the environment")
    if answer["code"] != own["code"]:
        told = f"other source files of this program: {answer['code'][:12]}, here {own['code'][:12]}"
        yield InputError("NODE13", told, fix="the same checkout on all hosts")


def ask(host: Host, verb: str, question: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """The answer of the probe on a host.

    Raises:
        InputError: NODE03, NODE19 as in pipeline.ssh; NODE11 no such Python, NODE13 no such code, NODE18 it failed.
    """
    python, probe = shlex.quote(sys.executable), shlex.quote(PROBE)
    there = f"test -r {probe} || exit {_NO_CODE}; test -x {python} || exit {_NO_PYTHON}"
    done = ssh(host.name, f"{there}; exec {python} {probe} {verb}", json.dumps(question), timeout)
    if done.returncode == _NO_CODE:
        raise InputError("NODE13", f"{host.name}: no {PROBE}", fix="the same checkout at the same path on all hosts")
    if done.returncode == _NO_PYTHON:
        told = f"{host.name}: no Python at {sys.executable}"
        raise InputError("NODE11", told, fix="one environment for all hosts, at the same path")
    with suppress(ValueError):
        return json.loads(last_line(done.stdout))
    told = f"{host.name}: {PROBE} ended with exit code {done.returncode}: {last_line(done.stderr) or 'no answer'}"
    if verb == "reduce":
        raise InputError("NODE18", told, fix="open the ports between the hosts, or set launch.interface")
    raise InputError("NODE11", told, fix=f"see what {sys.executable} is on that host")
