"""The reward's functions and the judge, tried before any model is loaded. Imports no torch."""

from collections.abc import Iterator

from pipeline.config import PipelineConfig
from pipeline.model_checks import collected
from reward.base import RewardError, resolve
from stages.base import InputError


def reward_errors(config: PipelineConfig) -> Iterator[InputError]:
    """CONF09: a judge that is a reward term. REW04: a function that cannot be found or takes other arguments."""
    functions = [term.function for term in config.reward if term.function]
    judge = config.evaluation.judge
    if judge in functions:
        problem = f"evaluation.judge {judge} is also a reward term, so it would judge what was trained on it"
        yield InputError("CONF09", problem, fix="use a function that training has not seen")
    for spec in dict.fromkeys([*functions, *([judge] if judge else [])]):
        yield from collected(lambda spec=spec: _resolve(spec))


def _resolve(spec: str) -> None:
    try:
        resolve(spec)
    except RewardError as error:
        problem, _, fix = str(error).removeprefix(f"[{error.code}] ").rpartition("; fix: ")
        raise InputError(error.code, problem, fix=fix) from error
    except Exception as error:  # importing a user's file can fail in any way
        problem = f"reward function '{spec}' cannot be imported ({type(error).__name__}: {error})"
        raise InputError("REW04", problem, fix="correct that file") from error
