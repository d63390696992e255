"""What a scoring server may do instead of answering, and what its caller is told then; for two completions or more."""

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.scoring_servers import Behaviour, Handler, answer, leaving, lengths, raw

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
AS_AGREED = answer()
ELSEWHERE = "http://127.0.0.1:9/"


@dataclass(frozen=True)
class Fault:
    """One way to fail."""

    behaviour: Behaviour
    code: str
    told: str
    """Part of the message."""
    exit_code: int = 2
    """Of a training that meets it."""
    before: Behaviour = AS_AGREED
    """What the server does with the request before."""

    @property
    def passes(self) -> bool:
        """Whether another try may help."""
        return self.code == "REW06"


def second(value: str) -> Callable[[dict[str, Any]], str]:
    """The right scores with that JSON in the place of the second."""

    def said(body: dict[str, Any]) -> str:
        scores = [str(score) for score in lengths(body)]
        return '{"scores": [' + ", ".join([scores[0], value, *scores[2:]]) + "]}"

    return said


def passing(behaviour: Behaviour, told: str, before: Behaviour = AS_AGREED) -> Fault:
    """A fault after which another try may help."""
    return Fault(behaviour, "REW06", told, exit_code=3, before=before)


def reset(handler: Handler) -> None:
    """Break the connection off in the middle of an answer."""
    handler.wfile.write(HEAD)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


NO_ANSWERS = {
    "html": Fault(answer("<html>sign in</html>", kind="text/html"), "REW08", "answered with 'text/html', expected"),
    "no json": Fault(answer("scores: 1, 2, 3"), "REW08", "'scores: 1, 2, 3', which is no JSON"),
    "half json": Fault(raw(HEAD + b'connection: close\r\n\r\n{"scores": [1.0, 2'), "REW08", "which is no JSON"),
    "deep json": Fault(answer("[" * 100_000), "REW08", "which is no JSON"),
    "long number": Fault(answer(second("9" * 5000)), "REW08", "which is no JSON"),
    "other shape": Fault(answer([1.0, 2.0, 3.0]), "REW08", "expected {'scores': [...]}"),
    "no list": Fault(answer({"scores": 3.0}), "REW08", "expected {'scores': [...]}"),
    "compressed": Fault(answer(content_encoding="gzip"), "REW08", "answered compressed"),
    "another request": Fault(answer(x_request_id="1"), "REW08", "another request"),
    "huge": Fault(
        raw(HEAD + b"content-length: 9999999999\r\n\r\n", *[b"9" * 60_000] * 40),
        "REW08",
        "max_response_bytes (1,048,576)",
    ),
    "wrong count": Fault(answer({"scores": [1.0]}), "REW01", "1 scores for "),
    "nothing": Fault(answer({"scores": []}), "REW01", "0 scores for "),
    "word": Fault(answer(second('"2"')), "REW02", "gave '2' for sample 1 (prompt"),
    "true": Fault(answer(second("true")), "REW02", "expected a number, found bool"),
    "null": Fault(answer(second("null")), "REW02", "expected a number, found NoneType"),
    "too large": Fault(answer(second("1e7")), "REW02", "above the limit 1e+06"),
    "redirect": Fault(answer("", status=302, location=ELSEWHERE), "REW07", f"302, a redirect to {ELSEWHERE}"),
    "redirect of the post": Fault(answer(status=307, location=ELSEWHERE), "REW07", f"307, a redirect to {ELSEWHERE}"),
    "token": Fault(answer({"detail": "who are you?"}, status=401), "REW07", "answered 401: who are you?"),
    "not there": Fault(answer("<h1>Not\tFound</h1>", status=404, kind="text/html"), "REW07", "404: <h1>Not Found</h1>"),
    "bad request": Fault(answer({"detail": "no\nlabel"}, status=422), "REW07", "answered 422: no label"),
    "no content": Fault(answer("", status=204), "REW07", "answered 204"),
}
"""Told at once."""
NOT_FINITE = {
    value: Fault(answer(second(value)), "REW02", f"gave {shown} for sample 1 (prompt", exit_code=4)
    for value, shown in {"NaN": "nan", "-Infinity": "-inf", "1e999": "inf"}.items()
}
"""Told at once, as of a run that diverges."""
SLOW = {
    "slow body": raw(HEAD + b"\r\n", *[b" "] * 400, pause=0.05),
    "slow head": raw(*[b"H"] * 400, pause=0.05),
    "silence": raw(*[b""] * 400, pause=0.05),
    "never final": raw(*[b"HTTP/1.1 102 Processing\r\n\r\n"] * 400, pause=0.05),
}
"""Answers that take 20 s."""
PASSING = {
    "500": passing(answer("broken", status=500), "answered 500: broken"),
    "503": passing(answer({"error": {"message": "loading"}}, status=503), "answered 503: loading"),
    "429": passing(answer("", status=429), "answered 429"),
    "408": passing(answer("", status=408), "answered 408"),
    "cut": passing(raw(HEAD + b"content-length: 100\r\n\r\n", b'{"scores": [1.0'), "RemoteProtocolError"),
    "closed": passing(raw(b""), "RemoteProtocolError"),
    "reset": passing(reset, "ReadError"),
    "rubbish": passing(raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "RemoteProtocolError"),
    "endless head": passing(raw(b"HTTP/1.1 200 OK\r\n", *[b"x-a: " + b"a" * 60_000] * 40), "RemoteProtocolError"),
}
"""Tried again."""
BUSY_FOR_A_DAY = passing(answer("", status=429, retry_after="86400"), "answered 429")
AWAY = passing(raw(b""), "ConnectError", before=leaving)
"""Nobody listens any more."""
FAULTS = {
    **PASSING,
    **{name: passing(behaviour, "no answer within ") for name, behaviour in SLOW.items()},
    "busy for a day": BUSY_FOR_A_DAY,
    "refused": AWAY,
    **NO_ANSWERS,
    **NOT_FINITE,
}
