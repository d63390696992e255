"""The connection between `rlhf run` and each rank. Standard library alone.

Both ends prove that they know the key of the job, and tick; one that falls silent is lost, whatever TCP believes.
Messages are JSON objects: never pickles, although the connection comes from `multiprocessing`.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from typing import Any

TICK = 1.0
"""Seconds between two signs of life."""
_LONGEST = 1 << 24


class Lost(Exception):
    """The other end is gone, or has been silent for too long."""


class Lifeline:
    """One end of a connection whose both ends know the key."""

    def __init__(self, connection: Connection, lost_after: float):
        self._connection = connection
        self._lost_after = lost_after
        self._sending = threading.Lock()
        self._over = threading.Event()

    @classmethod
    def to(cls, address: tuple[str, int], key: bytes, lost_after: float) -> "Lifeline":
        """Connect. Raises OSError, or AuthenticationError when the other end has another key."""
        return cls(Client(address, family="AF_INET", authkey=key), lost_after)

    @classmethod
    def accepted(cls, connection: Connection, key: bytes, lost_after: float) -> "Lifeline":
        """The other end of `to`. Raises OSError, EOFError or AuthenticationError for whoever does not know the key."""
        deliver_challenge(connection, key)
        answer_challenge(connection, key)
        return cls(connection, lost_after)

    def tick(self) -> None:
        """Give signs of life from a thread of its own, until the line is closed."""
        threading.Thread(target=self._tick, name="tick", daemon=True).start()

    def send(self, **message: Any) -> None:
        """Send one message; when the other end is gone, whoever receives will notice."""
        content = json.dumps(message).encode()
        with suppress(OSError), self._sending:
            self._connection.send_bytes(content)

    def messages(self) -> Iterator[dict[str, Any]]:
        """What comes, signs of life left out. Raises Lost when it ends or nothing has come for too long."""
        while True:
            try:
                if not self._connection.poll(self._lost_after):
                    raise Lost(f"silent for {self._lost_after:g} s")
                message = json.loads(self._connection.recv_bytes(_LONGEST))
            except (EOFError, OSError, ValueError) as error:
                raise Lost("connection closed") from error
            if message:
                yield message

    def close(self) -> None:
        """Hang up."""
        self._over.set()
        with suppress(OSError):
            self._connection.close()

    def _tick(self) -> None:
        while not self._over.wait(TICK):
            self.send()
