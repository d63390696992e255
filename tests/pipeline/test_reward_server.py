"""The web application by itself, over real sockets, with scoring functions that are slow, wrong or broken."""

import asyncio
import json
import logging
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pipeline import reward_server
from pipeline.reward_server import RewardService, web_server
from scripts.benchmark.request_fuzz import spoilt_body, strange_body

TOKEN = "5e4d7c1b" * 8
HEADERS = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}


def lengths(prompts: Any, completions: Any) -> list[float]:
    return [float(len(text)) for text in completions]


@contextmanager
def serving(score: Any, max_bytes: int = 4096) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = web_server(RewardService(score, "model-7", TOKEN, 4, max_bytes), grace=1)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def post(address: str, content: Any, timeout: float = 30.0, **headers: str) -> httpx2.Response:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return httpx2.post(f"{address}/score", content=body, headers=HEADERS | headers, timeout=timeout, trust_env=False)


def pairs(*completions: str) -> dict[str, Any]:
    return {"prompts": ["a secret prompt"] * len(completions), "completions": list(completions)}


def test_requests_are_scored_one_after_another_and_texts_are_not_printed(capsys: pytest.CaptureFixture):
    running, most = 0, 0

    def slow(prompts: Any, completions: Any) -> list[float]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.05)
        running -= 1
        return lengths(prompts, completions)

    async def all_at_once(address: str) -> list[httpx2.Response]:
        async with httpx2.AsyncClient(trust_env=False, headers=HEADERS, timeout=60.0) as client:
            asked = (client.post(f"{address}/score", json=pairs("secret", "x" * n)) for n in range(8))
            return await asyncio.gather(*asked)

    with serving(slow) as address:
        answers = asyncio.run(all_at_once(address))
    assert [answer.json()["scores"] for answer in answers] == [[6.0, float(n)] for n in range(8)]
    assert most == 1
    printed = "".join(capsys.readouterr())
    assert printed.count("2 scores in ") == 8
    assert "secret" not in printed
    assert TOKEN not in printed


def test_the_log_of_the_program_around_it_stays_open(tmp_path: Path):
    handler = logging.FileHandler(tmp_path / "log", mode="w")
    with serving(lengths) as address:
        post(address, pairs("a"))
    handler.handle(logging.LogRecord("around", logging.ERROR, "here.py", 1, "still here", None, None))
    handler.close()
    assert (tmp_path / "log").read_text() == "still here\n"


def test_whoever_has_left_is_not_scored():
    scored: list[str] = []
    begun, go = threading.Event(), threading.Event()

    def waiting(prompts: Any, completions: Any) -> list[float]:
        scored.extend(completions)
        begun.set()
        go.wait(10)
        return lengths(prompts, completions)

    with serving(waiting) as address:
        first = threading.Thread(target=post, args=(address, pairs("first")))
        first.start()
        begun.wait(10)
        with pytest.raises(httpx2.TimeoutException):
            post(address, pairs("impatient"), timeout=0.3)
        go.set()
        first.join()
        assert post(address, pairs("last")).json() == {"scores": [4.0]}
    assert scored == ["first", "last"]


@contextmanager
def begun_request(address: str) -> Iterator[socket.socket]:
    """A connection over which the first byte of 100 was sent."""
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=10) as caller:
        head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
        caller.sendall(f"POST /score HTTP/1.1\r\nhost: x\r\n{head}content-length: 100\r\n\r\n{{".encode())
        yield caller


def test_a_request_that_is_broken_off_is_no_failure_of_the_server(capsys: pytest.CaptureFixture):
    printed = []
    with serving(lengths) as address:
        with begun_request(address):
            time.sleep(0.2)  # so that the server is reading when the caller leaves
        for _ in range(100):
            printed += capsys.readouterr()
            if "refused with 499" in "".join(printed):
                break
            time.sleep(0.05)
        assert post(address, pairs("good")).json() == {"scores": [4.0]}
    assert "refused with 499" in "".join(printed)
    assert "Traceback" not in "".join([*printed, *capsys.readouterr()])


def test_a_request_that_is_not_here_in_time_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reward_server, "UPLOAD_SECONDS", 0.2)
    with serving(lengths) as address, begun_request(address) as caller:
        assert caller.recv(64).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("score", "told"),
    [
        (lambda prompts, completions: [1.0, float("nan")], "the score of sample 1 is not finite"),
        (lambda prompts, completions: 1 / 0, "the server failed; its terminal says why"),
    ],
)
def test_a_score_that_is_none_is_never_answered(score: Any, told: str, capsys: pytest.CaptureFixture):
    with serving(score) as address:
        for _ in range(2):
            answer = post(address, pairs("a", "b"))
            assert (answer.status_code, answer.json()["detail"]) == (500, told)
    assert ("ZeroDivisionError" in capsys.readouterr().err) == ("terminal" in told)


def test_no_request_breaks_it():
    source, good = random.Random(0), json.dumps(pairs("a", "b")).encode()
    with serving(lengths) as address, httpx2.Client(trust_env=False, headers=HEADERS) as client:
        found: dict[int, int] = {}
        for number in range(200):
            body = spoilt_body(source, good) if number % 2 else strange_body(source)
            status = client.post(f"{address}/score", content=body).status_code
            found[status] = found.get(status, 0) + 1
        assert found.keys() <= {200, 400, 413, 422}
        assert min(found.get(status, 0) for status in (400, 413, 422)) > 10
        assert client.post(f"{address}/score", content=good).json() == {"scores": [1.0, 1.0]}
