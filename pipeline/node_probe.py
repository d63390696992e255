"""What is run on every host by ssh before ranks are: a question as JSON on stdin, the answer as JSON on stdout.

    python pipeline/node_probe.py software|look|reduce

Standard library alone, but for torch in `reduce`: it has to tell what is missing.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.network import address_of, address_towards, free_port, interface_of, port_is_free

_CODE = ("pipeline", "stages", "reward")
_MEGABYTE = 1 << 20


def software(question: dict[str, Any]) -> dict[str, Any]:
    """What decides the numbers that this host computes."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in question["packages"]},
        "code": code_hash(Path(__file__).resolve().parents[1]),
    }


def look(question: dict[str, Any]) -> dict[str, Any]:
    """What this host is like."""
    address, trouble = _address(question["interface"], question["head"][0])
    return {
        **software(question),
        "time": time.time(),
        "shared": Path(question["token"]).exists(),
        "free": {name: shutil.disk_usage(_existing(path)).free for name, path in _places(question["folder"]).items()},
        "address": address,
        "interface": address and interface_of(address),
        "network": trouble or _way_back(question["head"], bytes.fromhex(question["key"])),
        "port": address and free_port(address),
        "port_taken": bool(address and question["port"]) and not port_is_free(address, question["port"]),
    }


def reduce(question: dict[str, Any]) -> dict[str, Any]:
    """Sum a megabyte over all hosts; the seconds of one such sum. Raises RuntimeError when that fails."""
    if question["interface"]:
        os.environ["GLOO_SOCKET_IFNAME"] = question["interface"]
    import torch
    from torch import distributed

    meet = f"tcp://{question['meet'][0]}:{question['meet'][1]}"
    limit = timedelta(seconds=question["timeout"])
    distributed.init_process_group("gloo", meet, limit, question["size"], question["rank"])
    numbers = torch.ones(_MEGABYTE // 4)
    distributed.all_reduce(numbers)
    assert bool((numbers == question["size"]).all())
    start = time.perf_counter()
    distributed.all_reduce(numbers)
    seconds = time.perf_counter() - start
    distributed.destroy_process_group()
    return {"seconds": seconds}


def code_hash(root: Path) -> str:
    """Digest of the names and contents of our source files."""
    digest = hashlib.sha256()
    for path in sorted(path for package in _CODE for path in (root / package).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _address(interface: str | None, head: str) -> tuple[str | None, str | None]:
    """This host's address, or what is wrong."""
    try:
        return (address_of(interface) if interface else address_towards(head)), None
    except OSError as error:
        return None, f"{f'interface {interface}' if interface else f'the way to {head}'}: {error.strerror or error}"


def _way_back(head: tuple[str, int], key: bytes) -> str | None:
    """Why `rlhf run` could not be reached from here, or None."""
    try:
        Client(tuple(head), family="AF_INET", authkey=key).close()
    except Exception as error:
        return f"{head[0]}:{head[1]}: {error}"
    return None


def _version(name: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _places(folder: str) -> dict[str, str]:
    return {folder: folder, tempfile.gettempdir(): tempfile.gettempdir(), "/dev/shm": "/dev/shm"}


def _existing(path: str) -> Path:
    found = Path(path).resolve()
    return next(parent for parent in (found, *found.parents) if parent.exists())


if __name__ == "__main__":
    answer = {"software": software, "look": look, "reduce": reduce}[sys.argv[1]](json.load(sys.stdin))
    print(json.dumps(answer))
