"""Requests that no client should send, drawn at random: what a scoring server has to survive."""

import json
import random
from collections.abc import Callable, Mapping

VALUES = (None, 1, "a", [], {}, [[]], ["a"], ["a"] * 9, [None], "[" * 3000, {"a": [1]}, [{"role": "a"}], 1e400)
TEXTS = ("", "a" * 5000, "\x00", "\ud800", "\U0001f600" * 50, "<eos><pad>", "{{ 1/0 }}", "\u202e\u0301", " " * 3000)
METHODS = ("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE", "PATCH", "post", "\x00", "")
PATHS = ("/", "//score", "/../score", "/%00", "/score?a=" + "b" * 3000, "/" + "a" * 70_000, "*", "http://a/score", "é")
HEADERS = (
    *("content-length: -1", "content-length: 99999999999999999999", "content-length: 1\r\ncontent-length: 2"),
    *("transfer-encoding: chunked", "transfer-encoding: gzip, chunked", "expect: 100-continue", "expect: 200-ok"),
    *("upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: a", "upgrade: h2c", "content-encoding: gzip"),
    *("content-type: text/plain", "content-type: \x00", "authorization: Bearer \xff", "x-request-id: \x1b[31m"),
    *("x-request-id: " + "a" * 9000, "host: \r\n a", ": a", "no colon", "x-a: " + "a" * 70_000, "cookie: ;;;=" * 99),
)
STRANGERS = (
    *(b"", b"\r\n" * 200, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    *(b"SSH-2.0-OpenSSH_9.6\r\n", b"GET /score\r\n", b"\x00" * 5000, b"A" * 200_000, b"POST /score HTTP/9.9\r\n\r\n"),
)


def spoilt(source: random.Random, good: bytes) -> bytes:
    """A few bytes replaced, added or missing."""
    found = bytearray(good)
    for _ in range(source.randrange(1, 6)):
        at = source.randrange(len(found))
        found[at : at + source.randrange(4)] = source.randbytes(source.randrange(4))
    return bytes(found)


def spoilt_body(source: random.Random, good: bytes) -> bytes:
    """A spoilt body, now and then several of it in one."""
    return spoilt(source, good) * source.choice((1, 1, 1, 2, 100))


def strange_body(source: random.Random) -> bytes:
    """JSON of the right keys and hardly ever of the right shape."""
    return json.dumps({name: source.choice(VALUES) for name in ("prompts", "completions", "columns")}).encode()


def strange_texts(source: random.Random) -> bytes:
    """JSON of the right shape with texts that nobody writes."""
    count = source.choice((1, 1, 2, 5, 40))
    return _pairs(*[[source.choice(TEXTS) for _ in range(count)] for _ in range(2)])


def _pairs(prompts: list[str], completions: list[str]) -> bytes:
    return json.dumps({"prompts": prompts, "completions": completions}).encode()


def http(body: bytes, method: str = "POST", path: str = "/score", *more: str) -> bytes:
    """A request as it goes over the wire; `more` headers come before those that belong to it."""
    head = [f"{method} {path} HTTP/1.1", "host: x", *more, "content-type: application/json"]
    head += [f"content-length: {len(body)}", "connection: close", "", ""]
    return "\r\n".join(head).encode("latin-1", errors="replace") + body


GOOD = _pairs(["ba", "ce"], ["da", "fefe"])
KEPT_OPEN = http(GOOD).replace(b"connection: close\r\n", b"")
KINDS: Mapping[str, Callable[[random.Random], bytes]] = {
    "spoilt body": lambda source: http(spoilt_body(source, GOOD)),
    "strange body": lambda source: http(strange_body(source)),
    "strange texts": lambda source: http(strange_texts(source)),
    "random body": lambda source: http(source.randbytes(source.randrange(3000))),
    "spoilt request": lambda source: spoilt(source, http(GOOD)),
    "strange method": lambda source: http(GOOD, source.choice(METHODS)),
    "strange path": lambda source: http(GOOD, "POST", source.choice(PATHS)),
    "strange header": lambda source: http(GOOD, "POST", "/score", source.choice(HEADERS)),
    "cut": lambda source: http(GOOD)[: source.randrange(len(http(GOOD)))],
    "several at once": lambda source: KEPT_OPEN * source.randrange(1, 30) + http(GOOD),
    "too large": lambda source: http(b" " * ((1 << 16) + source.randrange(1 << 20))),
    "stranger": lambda source: source.choice(STRANGERS) + source.randbytes(source.randrange(50)),
}


def drawn(seed: int) -> tuple[str, bytes]:
    """Kind and bytes of one request, the same for the same seed."""
    source = random.Random(seed)
    kind = tuple(KINDS)[seed % len(KINDS)]
    return kind, KINDS[kind](source)
