"""One request to a scoring server and what it answered, trusting nothing of it. Imports no torch.

Asked: `{"prompts": [...], "completions": [...]}`, with `"columns": {name: [...]}` where the config names some.
Answered: `{"scores": [...]}`, one number per completion, as JSON. Redirects, other kinds of content, compression and
answers above the size limit are refused; the time limit is for the whole exchange, however slowly bytes drip.
"""

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from uuid import uuid4

import httpx2

from reward.base import RewardUnavailable
from reward.remote_config import RemoteConfig

TOKEN_REJECTED, TRY_AGAIN = (401, 403), (408, 429)
MODEL, REQUEST = "x-reward-model", "x-request-id"
_ERROR_BYTES, _SHOWN = 4096, 200


class NoAnswer(Exception):
    """The server may answer the next time; `asked` is the pause in seconds that it wants."""

    def __init__(self, reason: str, asked: float | None = None):
        super().__init__(reason)
        self.asked = asked


@dataclass(frozen=True)
class Answer:
    """What came back, not yet looked at score by score."""

    scores: list[Any]
    model: str | None
    """What the server calls its model."""


@dataclass(frozen=True)
class Exchange:
    """How one server is asked."""

    name: str
    """The term, for messages."""
    config: RemoteConfig
    token: str | None
    certificates: ssl.SSLContext
    """Whom to trust."""

    def client(self) -> httpx2.AsyncClient:
        """A connection pool for this event loop."""
        return httpx2.AsyncClient(
            verify=self.certificates, trust_env=self.config.use_proxy, follow_redirects=False, timeout=None
        )

    async def ask(self, client: httpx2.AsyncClient, body: Mapping[str, Any]) -> Answer:
        """Post one batch.

        Raises NoAnswer where another try may help, and where it cannot RewardUnavailable REW07 (the server says no, or
        cannot be trusted) and REW08 (what it says is no answer).
        """
        number = str(uuid4())
        headers = {"accept": "application/json", "accept-encoding": "identity", REQUEST: number}
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        try:
            async with (
                asyncio.timeout(self.config.timeout_s),
                client.stream("POST", self.config.url, json=body, headers=headers) as response,
            ):
                return await self._answer(response, number)
        except TimeoutError as error:
            raise NoAnswer(f"no answer within {self.config.timeout_s:g} s") from error
        except httpx2.TransportError as error:
            raise self._not_reached(error) from error

    async def _answer(self, response: httpx2.Response, number: str) -> Answer:
        if response.status_code != 200:
            raise await self._refusal(response)
        kind = response.headers.get("content-type", "nothing").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise self._no_answer(f"answered with {clean(kind)!r}, expected 'application/json'")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise self._no_answer("answered compressed, which was not asked for")
        if response.headers.get(REQUEST, number) != number:
            raise self._no_answer("answered another request than this one")
        return Answer(self._scores(await self._body(response)), _model_of(response))

    async def _body(self, response: httpx2.Response) -> bytes:
        limit, found = self.config.max_response_bytes, bytearray()
        async for part in response.aiter_raw():
            found += part
            if len(found) > limit:
                raise self._no_answer(f"answered with more than max_response_bytes ({limit:,})")
        return bytes(found)

    def _scores(self, body: bytes) -> list[Any]:
        try:
            answered = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise self._no_answer(f"answered with {clean(body)!r}, which is no JSON") from error
        scores = answered.get("scores") if isinstance(answered, dict) else None
        if not isinstance(scores, list):
            raise self._no_answer(f"answered with {clean(body)!r}; expected {{'scores': [...]}}")
        return scores

    async def _refusal(self, response: httpx2.Response) -> Exception:
        status = response.status_code
        if response.is_redirect:
            target = clean(response.headers.get("location", "nowhere"))
            return self.refused(f"answered {status}, a redirect to {target}", "set url to the address that answers")
        said = await self._message(response)
        if status in TRY_AGAIN or status >= 500:
            return NoAnswer(f"answered {status}{said}", _retry_after(response))
        if status in TOKEN_REJECTED:
            given = f"look at the token in {self.config.token_env}" if self.token else "name its token in token_env"
            return self.refused(f"answered {status}{said}", given)
        return self.refused(f"answered {status}{said}", "look at url, columns, batch_size and the server")

    async def _message(self, response: httpx2.Response) -> str:
        """The beginning of what the server says of its refusal, made harmless."""
        found = bytearray()
        async for part in response.aiter_raw():
            found += part
            if len(found) > _ERROR_BYTES:
                break
        said = clean(_detail(bytes(found[:_ERROR_BYTES])))
        said = said.replace(self.token, "[token]") if self.token else said
        return f": {said}" if said else ""

    def _not_reached(self, error: httpx2.TransportError) -> Exception:
        certificate = _certificate_error(error)
        if certificate:
            told = clean(certificate.verify_message or str(certificate))
            return self.refused(f"has a certificate that is not trusted ({told})", "correct url, or set ca_file")
        return NoAnswer(f"{type(error).__name__}: {clean(str(error)) or 'the connection ended'}")

    def refused(self, problem: str, fix: str) -> RewardUnavailable:
        """REW07 with the server's address."""
        return RewardUnavailable("REW07", f"{self.name}: {self.config.url} {problem}", fix)

    def _no_answer(self, problem: str) -> RewardUnavailable:
        fix = "is url the right one? Its protocol is in docs/rewards.md"
        return RewardUnavailable("REW08", f"{self.name}: {self.config.url} {problem}", fix)


def clean(text: str | bytes) -> str:
    """The beginning of a stranger's text in one line, without control characters."""
    if isinstance(text, bytes):
        text = text[: 4 * _SHOWN].decode("utf-8", errors="replace")
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."


def _detail(body: bytes) -> str | bytes:
    """The message in an error's JSON, under the names that frameworks give it; else the body."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return body
    for key in ("detail", "error", "message"):
        told = told.get(key, told) if isinstance(told, dict) else told
    return told if isinstance(told, str) else json.dumps(told)


def _model_of(response: httpx2.Response) -> str | None:
    said = response.headers.get(MODEL)
    return clean(said) if said else None


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds that the server wants to be left alone: a number or a date (RFC 9110, 10.2.3)."""
    said = response.headers.get("retry-after", "").strip()
    if said.isdecimal():
        return float(said[:9])
    try:
        return (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return None


def _certificate_error(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error
