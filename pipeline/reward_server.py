"""The web application of `rlhf serve-reward`: who may ask, how much, and what comes back. Imports no torch.

POST /score takes `{"prompts": [...], "completions": [...]}` and answers `{"scores": [...]}`; further columns are left
unread. Requests are scored one after another. Texts are never logged.
"""

import asyncio
import hmac
import math
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from stages.base import InputError
from stages.redaction import redactor

UPLOAD_SECONDS = 60.0
"""Seconds in which a request has to be here."""
GONE = "nobody waits for the answer"
_SHOWN = 300
_CONCURRENT = 64
"""Requests at a time; further ones are answered with 503, which clients try again."""

Score = Callable[[Sequence[Any], Sequence[str]], list[float]]


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: str
    content: str


class Pairs(BaseModel):
    """What is asked."""

    model_config = ConfigDict(extra="forbid", strict=True)
    prompts: list[str | Annotated[list[Message], Field(min_length=1)]]
    completions: list[str]
    columns: dict[str, list[Any]] = {}


class Refused(Exception):
    """A request that is not answered with scores."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None):
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers


@dataclass
class RewardService:
    """Answers requests."""

    score: Score
    model: str
    """What the model is called in answers, so that another one is noticed."""
    token: str | None
    max_batch: int
    """Pairs per request."""
    max_bytes: int
    """Size of a request."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def answer(self, request: Request) -> dict[str, list[float]]:
        """The scores of a request. Raises Refused."""
        self._require_token(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "expected content-type: application/json")
        pairs = self._pairs(await self._body(request))
        prompts = [p if isinstance(p, str) else [m.model_dump() for m in p] for p in pairs.prompts]
        async with self._turn:
            if await request.is_disconnected():
                raise Refused(499, GONE)
            begun = time.perf_counter()
            try:
                scores = await run_in_threadpool(self.score, prompts, pairs.completions)
            except InputError as error:
                raise Refused(422, str(error)) from error
        wrong = [i for i, score in enumerate(scores) if not math.isfinite(score)]
        if wrong:
            raise Refused(500, f"the score of sample {wrong[0]} is not finite")
        print(f"{len(scores)} scores in {time.perf_counter() - begun:.2f} s", flush=True)
        return {"scores": scores}

    def _require_token(self, request: Request) -> None:
        if self.token is None:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self.token.encode())
        if kind.lower() != "bearer" or not same:
            raise Refused(401, "a bearer token is required, and this is not it", {"www-authenticate": "Bearer"})

    async def _body(self, request: Request) -> bytes:
        found = bytearray()
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                async for part in request.stream():
                    found += part
                    if len(found) > self.max_bytes:
                        raise Refused(413, f"a request may have {self.max_bytes:,} bytes", {"connection": "close"})
        except ClientDisconnect as error:
            raise Refused(499, GONE) from error
        except TimeoutError as error:
            raise Refused(408, f"the request was not here after {UPLOAD_SECONDS:g} s") from error
        return bytes(found)

    def _pairs(self, body: bytes) -> Pairs:
        try:
            pairs = Pairs.model_validate_json(body)
        except ValidationError as error:
            raise _malformed(error) from error
        if len(pairs.prompts) != len(pairs.completions):
            raise Refused(422, f"{len(pairs.prompts)} prompts for {len(pairs.completions)} completions")
        if not 0 < len(pairs.prompts) <= self.max_batch:
            raise Refused(422, f"found {len(pairs.prompts)} pairs, expected 1 to {self.max_batch}")
        return pairs


def _malformed(error: ValidationError) -> Refused:
    """400 for what is no JSON, 422 for JSON of another shape, with the place of the first mistake and no text."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    status = 400 if first["type"] == "json_invalid" else 422
    return Refused(status, f"{place}: {first['msg']}" if place else first["msg"])


def application(service: RewardService) -> FastAPI:
    """The routes, with the model's name in every answer and the caller's request id given back."""
    app = FastAPI(title="rlhf serve-reward", docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/score")
    async def score(request: Request) -> JSONResponse:
        try:
            return JSONResponse(await service.answer(request), headers=_headers(service, request))
        except Refused as refused:
            print(f"refused with {refused.status}", flush=True)
            headers = {**_headers(service, request), **(refused.headers or {})}
            detail = redactor().text(refused.reason)[:_SHOWN]
            return JSONResponse({"detail": detail}, status_code=refused.status, headers=headers)

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok", "model": service.model})

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        print(redactor().text("".join(traceback.format_exception(error))), file=sys.stderr, flush=True)
        return JSONResponse({"detail": "the server failed; its terminal says why"}, status_code=500)

    return app


def web_server(service: RewardService, certificate: Path | None = None, grace: int = 5) -> uvicorn.Server:
    """The service, ready to run; requests under way have `grace` seconds once it is told to end."""
    config = uvicorn.Config(
        application(service),
        access_log=False,
        log_level="critical",
        log_config=None,  # another would close the handlers of other libraries, and absl's closes our own output
        limit_concurrency=_CONCURRENT,
        timeout_graceful_shutdown=grace,
        server_header=False,
        ssl_certfile=certificate,
    )
    return uvicorn.Server(config)


def _headers(service: RewardService, request: Request) -> dict[str, str]:
    number = request.headers.get("x-request-id", "")
    echoed = {"x-request-id": number} if 0 < len(number) <= 64 and number.isascii() and number.isprintable() else {}
    return {"x-reward-model": service.model, **echoed}
