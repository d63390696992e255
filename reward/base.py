"""What a reward is, how a user's function is found, and what it must return. Imports no torch."""

import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol


class RewardFunction(Protocol):
    """One score per completion; `columns` are the other columns of the prompt rows, each a list."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> list[float]: ...


class RewardError(Exception):
    """A reward function that cannot be found, or broke its contract. `code` is REW01..REW04."""

    def __init__(self, code: str, problem: str, fix: str):
        super().__init__(f"[{code}] {problem}; fix: {fix}")
        self.code = code


def resolve(spec: str) -> Callable[..., list[float]]:
    """The function at `package.module:name` or `path/to/file.py:name`.

    Raises RewardError REW04 when it is not there or does not take (prompts, completions, **columns).
    """
    module_name, _, name = spec.rpartition(":")
    try:
        module = _load_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
        function = getattr(module, name)
    except (ImportError, AttributeError, FileNotFoundError, ValueError) as error:
        raise RewardError(
            "REW04",
            f"reward function '{spec}' cannot be imported ({error})",
            fix="module:function, or path/to/file.py:function",
        ) from error
    except Exception as error:  # the user's module ran and failed in a way of its own
        raise RewardError(
            "REW04",
            f"reward function '{spec}' cannot be imported ({type(error).__name__}: {error})",
            fix="correct that file",
        ) from error
    if not callable(function):
        raise RewardError("REW04", f"{spec} is a {type(function).__name__}, not a function", fix="name a function")
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if not takes_any or not {"prompts", "completions"} <= parameters.keys():
        raise RewardError(
            "REW04",
            f"{spec} takes ({', '.join(parameters)}); needs (prompts, completions, **columns)",
            fix="add the missing parameters",
        )
    return function


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def called(
    name: str, function: RewardFunction, prompts: Sequence[str], completions: Sequence[str], **columns: Any
) -> Any:
    """What the function returns. Raises RewardError REW03, naming the line that failed, when it raises."""
    try:
        return function(prompts=prompts, completions=completions, **columns)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise RewardError(
            "REW03",
            f"{name} raised {type(error).__name__}: {error} at {where.filename}:{where.lineno}, "
            f"scoring {len(completions)} completions, the first {completions[0][:40]!r}",
            fix="mend the function",
        ) from error


def checked(name: str, scores: Any, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """The scores as floats, if there is one finite number per completion.

    Raises RewardError REW01 (wrong count) or REW02 (not a finite number), naming the sample.
    """
    if not isinstance(scores, Iterable):
        raise RewardError("REW01", f"{name} returned {scores!r}", fix="return one float per completion")
    scores = list(scores)
    if len(scores) != len(completions):
        raise RewardError(
            "REW01",
            f"{name} returned {len(scores)} values for {len(completions)} completions",
            fix="return one float per completion",
        )
    for i, score in enumerate(scores):
        if isinstance(score, (bool, str)) or not hasattr(score, "__float__") or not math.isfinite(float(score)):
            raise RewardError(
                "REW02",
                f"{name} gave {score!r} for sample {i} "
                f"(prompt {prompts[i][:40]!r}, completion {completions[i][:40]!r})",
                fix="return a finite float for every completion",
            )
    return [float(score) for score in scores]
