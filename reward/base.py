"""What a reward is, how a user's function is found, and what it must return. Imports no torch."""

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
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
        raise RewardError("REW04", f"reward function '{spec}' cannot be imported ({error})", fix="module:function, or path/to/file.py:function") from error
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if not takes_any or not {"prompts", "completions"} <= parameters.keys():
        raise RewardError("REW04", f"{spec} takes ({', '.join(parameters)}); needs (prompts, completions, **columns)", fix="add the missing parameters")
    return function


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checked(name: str, scores: Any, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """The scores as floats, if there is one finite number per completion.

    Raises RewardError REW01 (wrong count) or REW02 (not a finite number), naming the sample.
    """
    scores = list(scores)
    if len(scores) != len(completions):
        raise RewardError("REW01", f"{name} returned {len(scores)} values for {len(completions)} completions", fix="return one float per completion")
    for i, score in enumerate(scores):
        if isinstance(score, (bool, str)) or not hasattr(score, "__float__") or not math.isfinite(float(score)):
            raise RewardError(
                "REW02", f"{name} gave {score!r} for sample {i} (prompt {prompts[i][:40]!r}, completion {completions[i][:40]!r})",
                fix="return a finite float for every completion",
            )
    return [float(score) for score in scores]
