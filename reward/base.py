"""What a reward is, and how a user's function is found. Imports no torch."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol


class RewardFunction(Protocol):
    """One score per completion; `columns` are the other columns of the prompt rows, each a list."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> list[float]: ...


class RewardError(Exception):
    """A reward function that cannot be found, or broke its contract. `code` is REW01 to REW08."""

    def __init__(self, code: str, problem: str, fix: str):
        super().__init__(f"[{code}] {problem}; fix: {fix}")
        self.code, self.problem, self.fix = code, problem, fix


class NonFiniteScore(RewardError):
    """A reward function gave NaN or an infinity: REW02."""


class RewardUnavailable(RewardError):
    """A scoring server gave no scores, and nothing was changed by asking it.

    REW06 it did not answer, or the token for it is missing; REW07 it said no, or cannot be trusted; REW08 what it said
    is no answer.
    """


def resolve(spec: str) -> Callable[..., list[float]]:
    """The function at `package.module:name` or `path/to/file.py:name`.

    Raises RewardError REW04 when it is not there or does not take any columns (`**columns`).
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
    except (Exception, SystemExit) as error:  # the user's module ran and failed in a way of its own
        raise RewardError(
            "REW04",
            f"reward function '{spec}' cannot be imported ({type(error).__name__}: {error})",
            fix="correct that file",
        ) from error
    if not callable(function):
        raise RewardError("REW04", f"{spec} is a {type(function).__name__}, not a function", fix="name a function")
    parameters = inspect.signature(function).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
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
