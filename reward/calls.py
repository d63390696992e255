"""How a user's function is called: with the batch or one by one, plain or async, as TRL's GRPO calls it.

Imports no torch.
"""

import asyncio
import atexit
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal

from reward.base import RewardFunction

Call = Literal["batch", "single"]
GIVEN: dict[Call, frozenset[str]] = {
    "batch": frozenset({"prompts", "completions", "completion_ids", "trainer_state"}),
    "single": frozenset({"prompt", "completion", "completion_ids", "trainer_state"}),
}
"""Arguments that every function of this kind gets beside the columns of the data."""
TRL_ALONE = ("log_extra", "log_metric", "environments")
"""Arguments that TRL's trainer passes and this one does not."""


@dataclass(frozen=True)
class TrainerState:
    """How far training is: what reward functions get as `trainer_state`. Evaluations are scored as at its end."""

    global_step: int = 0
    """Finished PPO iterations."""
    max_steps: int = 1
    """PPO iterations of the whole stage."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"trainer_state has global_step and max_steps here, and no '{name}'")


@dataclass(frozen=True)
class Calling:
    """How to call a function."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of every call; they win over columns."""
    call: Call = "batch"
    concurrency: int = 8
    """Calls of an async function that are under way at once, with call: single."""


class SampleFailed(Exception):
    """The function raised on one sample, given by its place; the error is the cause."""

    def __init__(self, index: int):
        super().__init__(f"sample {index}")
        self.index = index


def plain(function: Callable[..., Any], calling: Calling) -> RewardFunction:
    """The function as one call with the whole batch that returns the values, whatever kind it is.

    Completions of chat prompts become lists of one message, as TRL passes them.
    """
    given = partial(function, **calling.arguments)

    def ask(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> Any:
        free = {k: v for k, v in columns.items() if k not in calling.arguments}
        answers = [_answer(p, c) for p, c in zip(prompts, completions, strict=True)]
        if calling.call == "single":
            return _answered(given, list(_rows(prompts, answers, free)), calling.concurrency)
        returned = given(prompts=prompts, completions=answers, **free)
        return _loop().run(returned) if is_async(function) else returned

    ask.__wrapped__ = given  # whose signature and source file are told
    ask.given = GIVEN[calling.call]
    return ask


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine; true of objects with an async `__call__` too."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def source_file(function: Callable[..., Any]) -> str | None:
    """The file that the user's function is written in."""
    function = inspect.unwrap(function)
    while isinstance(function, partial):
        function = inspect.unwrap(function.func)
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return code.co_filename if code else None


def _answer(prompt: Any, completion: str) -> Any:
    return completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}]


def _rows(prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments of each sample's call; what is no list, such as trainer_state, is for all."""
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        own = {name: values[i] if isinstance(values, list) else values for name, values in columns.items()}
        yield {**own, "prompt": prompt, "completion": completion}


def _answered(function: Callable[..., Any], rows: Sequence[dict[str, Any]], concurrency: int) -> list[Any]:
    if is_async(function):
        return _loop().run(_gathered(function, rows, concurrency))
    return [_one(function, i, row) for i, row in enumerate(rows)]


def _one(function: Callable[..., Any], index: int, row: Mapping[str, Any]) -> Any:
    try:
        return function(**row)
    except (Exception, SystemExit) as error:
        raise SampleFailed(index) from error


async def _gathered(function: Callable[..., Any], rows: Sequence[dict[str, Any]], concurrency: int) -> list[Any]:
    """One value per row, in their order; when one fails the others are cancelled."""
    free = asyncio.Semaphore(concurrency)

    async def one(index: int, row: Mapping[str, Any]) -> Any:
        async with free:
            try:
                return await function(**row)
            except Exception as error:
                raise SampleFailed(index) from error

    tasks = [asyncio.ensure_future(one(i, row)) for i, row in enumerate(rows)]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@cache
def _loop() -> asyncio.Runner:
    """One event loop for the whole process, so that a function may keep its connections from call to call."""
    runner = asyncio.Runner()
    atexit.register(runner.close)
    return runner
