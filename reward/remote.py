"""Scores from a server: in batches, with bounded retries, waiting visibly. Imports no torch."""

import asyncio
import os
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from reward.base import RewardError, RewardUnavailable
from reward.contract import LIMIT, checked
from reward.remote_config import RemoteConfig
from reward.remote_exchange import Answer, Exchange, NoAnswer

_LOOK = 0.2
"""Seconds between two looks at whether to stop while a server is waited for."""
_SHORTEST_TOKEN = 8
"""Characters; shorter values cannot be kept out of what is written down."""


@dataclass(frozen=True)
class Waiting:
    """What goes on while a server is waited for."""

    beat: Callable[[], None] = lambda: None
    """Called several times a second: waiting for an answer is no hang, it is bounded by the config."""
    stopped: Callable[[], bool] = lambda: False
    """Whether to give up, because the stage was asked to end."""
    tell: Callable[[str], None] = lambda text: print(text, flush=True)
    """Given one line per retry."""


class RemoteScorer:
    """Asks one server; remembers what it called its model."""

    def __init__(self, name: str, config: RemoteConfig, limit: float = LIMIT, waiting: Waiting | None = None):
        """Raises RewardUnavailable REW06 without the token that the config names, REW07 for a ca_file that is none."""
        self._name, self._config, self._limit = name, config, limit
        self._waiting = waiting or Waiting()
        self._exchange = Exchange(name, config, _token(name, config), _certificates(name, config))
        self.model = config.model
        """What the server calls its model, once it has answered."""

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[float]:
        """One finite float per completion.

        Raises RewardError REW01 and REW02 as in reward.contract, REW04 (a column that the data lacks),
        RewardUnavailable REW06 (no answer after all tries), and REW07 and REW08 as in reward.remote_exchange.
        """
        missing = [name for name in self._config.columns if name not in columns]
        if missing:
            problem = f"{self._name} is to be sent '{missing[0]}', which is no column of the prompt data"
            raise RewardError("REW04", problem, fix="add it to the prompt rows, or take it out of remote.columns")
        batches = list(self._batches(prompts, completions, columns))
        answered = asyncio.run(self._watched(self._all(batches)))
        return checked(self._name, answered, prompts, completions, self._limit, abstains=False)

    def _batches(
        self, prompts: Sequence[Any], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> Iterator[dict[str, Any]]:
        for start in range(0, len(completions), self._config.batch_size):
            rows = slice(start, start + self._config.batch_size)
            sent = {name: list(columns[name][rows]) for name in self._config.columns}
            body = {"prompts": list(prompts[rows]), "completions": list(completions[rows])}
            yield body | ({"columns": sent} if sent else {})

    async def _all(self, batches: Sequence[Mapping[str, Any]]) -> list[Any]:
        scores: list[Any] = []
        async with self._exchange.client() as client:
            for body in batches:
                answer = await self._one(client, body)
                self._require_same(answer)
                if len(answer.scores) != len(body["completions"]):
                    found = f"{len(answer.scores)} scores for {len(body['completions'])} completions"
                    raise RewardError("REW01", f"{self._name} answered {found}", fix="one score per completion")
                scores += answer.scores
        return scores

    async def _one(self, client: httpx2.AsyncClient, body: Mapping[str, Any]) -> Answer:
        """The answer to one batch, after as many tries as are allowed."""
        tries, begun = self._config.retries + 1, time.monotonic()
        for number in range(1, tries + 1):
            try:
                answer = await self._exchange.ask(client, body)
            except NoAnswer as reason:
                if number == tries:
                    raise self._given_up(str(reason), tries) from reason
                pause = self._config.pause_before(number, reason.asked)
                self._waiting.tell(
                    f"{self._name}: {self._config.url}: {reason}; try {number + 1} of {tries} in {pause:g} s"
                )
                await asyncio.sleep(pause)
            else:
                if number > 1:
                    waited = time.monotonic() - begun
                    self._waiting.tell(f"{self._name}: {self._config.url} answers again, after {waited:.0f} s")
                return answer
        raise AssertionError

    async def _watched(self, work: Coroutine[Any, Any, list[Any]]) -> list[Any]:
        """The result of `work`, while the pulse beats; given up when the stage is asked to end."""
        task = asyncio.ensure_future(work)
        while not task.done():
            await asyncio.wait({task}, timeout=_LOOK)
            self._waiting.beat()
            if self._waiting.stopped() and not task.done():
                task.cancel()
                await asyncio.wait({task})
                problem = f"{self._name}: {self._config.url} had not answered when the stage was asked to end"
                raise RewardUnavailable("REW06", problem, fix="the same command continues")
        return task.result()

    def _require_same(self, answer: Answer) -> None:
        if self.model is None:
            self.model = answer.model
        if answer.model != self.model:
            problem = f"{self._name}: {self._config.url} answers as model {answer.model}, expected {self.model}"
            raise RewardUnavailable("REW08", problem, fix="serve that model again, or start the stage anew")

    def _given_up(self, reason: str, tries: int) -> RewardUnavailable:
        times = "once" if tries == 1 else f"{tries} times"
        problem = f"{self._name}: {self._config.url} was asked {times} without an answer; the last time: {reason}"
        return RewardUnavailable("REW06", problem, fix="start that server; the same command continues")


def _token(name: str, config: RemoteConfig) -> str | None:
    if config.token_env is None:
        return None
    token = os.environ.get(config.token_env, "")
    if not token:
        problem = f"{name}: remote.token_env names {config.token_env}, which is not set"
        raise RewardUnavailable("REW06", problem, fix=f"export {config.token_env}=...")
    if len(token) < _SHORTEST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        problem = f"{name}: the value of {config.token_env} is no token"
        raise RewardUnavailable("REW06", problem, fix=f"at least {_SHORTEST_TOKEN} printable characters, no blanks")
    return token


def _certificates(name: str, config: RemoteConfig) -> ssl.SSLContext:
    if not config.url.startswith("https:") and not config.use_proxy:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody, and takes no time to make
    if config.ca_file is None:
        return httpx2.create_ssl_context(trust_env=False)
    try:
        return ssl.create_default_context(cafile=config.ca_file)
    except OSError as error:
        problem = f"{name}: remote.ca_file {config.ca_file} cannot be used ({error})"
        raise RewardUnavailable("REW07", problem, fix="name a PEM file with certificates") from error
