"""`rlhf serve-reward` under requests that no client should send, and where it listens: R36."""

import json
import re
import socket
import subprocess
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil

from reward.remote import RemoteScorer
from reward.remote_config import RemoteConfig
from scripts.benchmark import tiny_files
from scripts.benchmark.killing import ENVIRONMENT, rlhf
from scripts.benchmark.request_fuzz import GOOD, drawn
from scripts.benchmark.scoreboard import Figure, Row
from tests.served_rewards import Server, served

REQUESTS, AT_ONCE, BETWEEN = 1000, 4, 50
"""All of them, senders, and after how many the server has to score rightly."""
PATIENCE = 1.0
"""Seconds for which a sender waits; half of a request is never answered."""
LARGEST = 1 << 16
OPEN = {
    "0.0.0.0": (),
    "::": (),
    "": (),
    "scorer.example": (),
    "192.0.2.1": (),
    "0.0.0.0, short token": ("--token-env", "SHORT_TOKEN"),
    "0.0.0.0, no such token": ("--token-env", "ABSENT_TOKEN"),
}
"""Addresses that other machines could reach, and options without which they would need no token that is one."""


def measure(work: Path, quick: bool) -> Figure:
    """A tiny trained reward model is served by the command and asked everything; then the addresses to be refused."""
    final, count = _reward_model(work), 120 if quick else REQUESTS
    with served(final, "--port", 0, "--max-bytes", LARGEST) as server:
        answers, bad = _fuzz(server, count)
        bad += _broken(server)
        listening = _addresses(server)
    hosts = list(OPEN)[:1] if quick else list(OPEN)
    opened = [host for host in hosts if not _refused(final, host)]
    told = f"{answers['200']:,} answers with scores, {answers['none']} requests without an answer"
    summary = (
        f"{len(bad)} bad after {count:,} requests ({told}); listens at {', '.join(listening)}; "
        f"{len(hosts) - len(opened)}/{len(hosts)} open addresses refused"
    )
    detail = {"bad": bad, "opened": opened, "answers": dict(answers)}
    return Figure(summary, not bad and listening == ["127.0.0.1"] and not opened, detail)


def _reward_model(work: Path) -> Path:
    """By the real stage, in two steps."""
    config = tiny_files.config(work / "config.yaml", tiny_files.model(work / "good"), work / "runs")
    command = rlhf("run", str(config), "--only", "reward_model", "sft.enabled=false", "reward_model.max_steps=2")
    done = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return work / "runs" / "tiny" / "reward_model" / "final"


def _addresses(server: Server) -> list[str]:
    """Where the process listens, as the kernel says."""
    found = psutil.Process(server.process.pid).net_connections(kind="inet")
    return sorted({one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN})


def _fuzz(server: Server, count: int) -> tuple[Counter[str], list[str]]:
    """Answers by status, and what is bad: a failure of the server, or other scores than before."""
    answers, bad, expected = Counter(), [], _scores(server)
    with ThreadPoolExecutor(AT_ONCE) as senders:
        for start in range(0, count, BETWEEN):
            numbers = range(start, min(start + BETWEEN, count))
            for number, statuses in zip(
                numbers, senders.map(lambda n: _send(server, drawn(n)[1]), numbers), strict=True
            ):
                answers.update(statuses or ["none"])
                bad += [f"request {number}, {drawn(number)[0]}: {one}" for one in statuses if one[0] not in "1234"]
            if (found := _scores(server)) != expected:
                bad.append(f"{found} after request {numbers[-1]}, {expected} before all of them")
    return answers, bad


def _send(server: Server, request: bytes) -> Sequence[str]:
    """The statuses that come back before the connection ends or nobody waits any more."""
    found = bytearray()
    with suppress(OSError), socket.create_connection(("127.0.0.1", int(server.port)), timeout=PATIENCE) as connection:
        with suppress(OSError):  # the server may close before it has read all
            connection.sendall(request)
        while part := connection.recv(1 << 16):
            found += part
    return [status.decode() for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", bytes(found))]


def _scores(server: Server) -> list[float] | str:
    """What the client of PPO gets for a good request, or why it gets nothing."""
    asked = json.loads(GOOD)
    config = RemoteConfig(url=server.url, model=server.model, retries=0)
    try:
        return RemoteScorer("remote", config)(asked["prompts"], asked["completions"], {})
    except Exception as error:
        return str(error)


def _broken(server: Server) -> list[str]:
    """What says that the process did not come through all this."""
    health = server.request("GET", server.url.replace("/score", "/health")).json()
    holds = {
        "the process has ended": server.process.poll() is None,
        "it prints a traceback": "Traceback" not in server.output.read_text(),
        f"its health is {health}": health == {"status": "ok", "model": server.model},
        f"its scores are {_scores(server)}": isinstance(_scores(server), list),
    }
    return [what for what, well in holds.items() if not well]


def _refused(final: Path, host: str) -> bool:
    """Whether the command ends with SERVE01 before anything listens at that address."""
    command = rlhf("serve-reward", str(final), "--port", "0", "--host", host.partition(",")[0], *OPEN[host])
    environment = {**ENVIRONMENT, "SHORT_TOKEN": "5e4d7c1b"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    return done.returncode == 2 and done.stderr.startswith("[SERVE01] ") and not done.stdout


ROWS: dict[str, Row] = {
    "R36": Row(
        "the reward server survives any request, listens at this machine alone, and nowhere else without a token",
        f"0 crashes or other scores after {REQUESTS:,} requests; 127.0.0.1; all open addresses refused",
        measure,
    )
}
