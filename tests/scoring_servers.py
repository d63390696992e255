"""Scoring servers for tests: real sockets on this machine that answer as agreed, or as no server should."""

import json
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Behaviour = Callable[["Handler"], None]


@dataclass
class Seen:
    """What a server was asked."""

    address: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """Seconds of the monotonic clock."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    """Reads a request, then does what its server is to do with the n-th one; the last behaviour stays."""

    behaviours: list[Behaviour]
    seen: Seen

    def do_POST(self) -> None:
        self.seen.times.append(time.monotonic())
        self.seen.headers.append({name.lower(): value for name, value in self.headers.items()})
        self.body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.seen.lock:
            self.seen.bodies.append(self.body)
            number = len(self.seen.bodies)
        self.behaviours[min(number, len(self.behaviours)) - 1](self)

    def log_message(self, *unused: object) -> None:
        """Nothing."""


def lengths(body: dict[str, Any]) -> list[float]:
    """The score of these servers: the length of the completion."""
    return [float(len(text)) for text in body["completions"]]


def answer(content: object = None, status: int = 200, kind: str = "application/json", **headers: str) -> Behaviour:
    """Answer with that content, or what it makes of the request, as JSON if it is no text; by default the scores."""

    def behave(handler: Handler) -> None:
        said = {"scores": lengths(handler.body)} if content is None else content
        said = said(handler.body) if callable(said) else said
        body = (said if isinstance(said, str) else json.dumps(said)).encode()
        handler.send_response(status)
        handler.send_header("content-type", kind)
        handler.send_header("content-length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return behave


def raw(*parts: bytes, pause: float = 0.0) -> Behaviour:
    """Send these bytes, with a pause after each, then close; stops when nobody listens any more."""

    def behave(handler: Handler) -> None:
        handler.close_connection = True
        try:
            for part in parts:
                handler.wfile.write(part)
                handler.wfile.flush()
                time.sleep(pause)
        except OSError:
            return

    return behave


def leaving(handler: Handler) -> None:
    """Answer as agreed, and listen no more."""
    handler.server.shutdown()
    handler.server.server_close()
    answer()(handler)


@contextmanager
def serving(*behaviours: Behaviour, certificate: Path | None = None, port: int = 0) -> Iterator[Seen]:
    """A server on a port of this machine, 0 = any free one, by TLS with a `certificate` (key in the same file)."""
    handler = type("OneServer", (Handler,), {"behaviours": list(behaviours) or [answer()]})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    server.handle_error = lambda *unused: None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "https" if certificate else "http"
    handler.seen = Seen(f"{scheme}://127.0.0.1:{server.server_address[1]}/score")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield handler.seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def self_signed(folder: Path, address: str = "127.0.0.1") -> Path:
    """A certificate for that address, signed by itself, with its key."""
    key, certificate, both = folder / "key.pem", folder / "certificate.pem", folder / f"{address}.pem"
    subject = ["-subj", f"/CN={address}", "-addext", f"subjectAltName=IP:{address}"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        [*made, "-days", "2", *subject, "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    both.write_text(key.read_text() + certificate.read_text())
    return both
