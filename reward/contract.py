"""What a reward function must return, and which line and sample are to blame when it does not. Imports no torch."""

import inspect
import math
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from reward.base import NonFiniteScore, RewardError, RewardFunction
from reward.calls import GIVEN, TRL_ALONE, SampleFailed, source_file

LIMIT = 1e6
"""Default magnitude (score units) beyond which a score is taken for a mistake."""
_ONE_EACH = "return a list with one float per completion"
_NOT_FINITE = "expected a finite number"
_WHOLE = "the whole batch, though on no sample alone"
_OTHERWISE = {
    **dict.fromkeys(("prompt", "completion"), "set call: single for this term, or take prompts and completions"),
    **dict.fromkeys(("prompts", "completions"), "set call: batch for this term, or take prompt and completion"),
    **{name: f"give it a default, {name}=None: only TRL's own trainer passes it" for name in TRL_ALONE},
}
"""What to do about names that are hardly columns."""
_SHOWN = 40
"""Characters of a prompt or completion in a message."""


def scores_of(
    name: str,
    function: RewardFunction,
    prompts: Sequence[Any],
    completions: Sequence[str],
    columns: Mapping[str, Any],
    limit: float = LIMIT,
) -> list[float | None]:
    """One finite float per completion, of magnitude `limit` at most, or None where the function does not apply.

    `columns` holds the data's other columns, and arguments of the config.

    Raises RewardError REW01 (no list, or a wrong count), REW02 (a score that is no such float), REW03 (it raised),
    REW04 (it wants a column that the data lacks); each names the sample where there is one.
    NaN and infinities raise its subclass NonFiniteScore.
    """
    _require_columns(name, function, columns)
    columns = {k: v for k, v in columns.items() if k not in ("prompts", "completions")}
    try:
        returned = function(prompts=prompts, completions=completions, **columns)
    except SampleFailed as failed:
        told = _sample(failed.index, prompts, completions)
        raise _raised(name, function, failed.__cause__, told) from failed.__cause__
    except (Exception, SystemExit) as error:
        culprit = _culprit(function, prompts, completions, columns)
        told = _WHOLE if culprit is None else _sample(culprit, prompts, completions)
        raise _raised(name, function, error, told) from error
    return checked(name, returned, prompts, completions, limit)


def checked(
    name: str,
    returned: Any,
    prompts: Sequence[Any],
    completions: Sequence[str],
    limit: float = LIMIT,
    abstains: bool = True,
) -> list[float | None]:
    """What a function returned as floats, if it keeps the contract of `scores_of`; None only where it `abstains`."""
    scores = _listed(name, returned)
    if len(scores) != len(completions):
        problem = f"{name} returned {len(scores)} values for {len(completions)} completions"
        raise RewardError("REW01", problem, fix=_ONE_EACH)
    for i, score in enumerate(scores):
        wrong = None if score is None and abstains else _wrong(score, limit)
        if wrong:
            problem = f"{name} gave {_short(score)} for {_sample(i, prompts, completions)}; {wrong}"
            kind = NonFiniteScore if wrong == _NOT_FINITE else RewardError
            raise kind("REW02", problem, fix="return a finite float for every completion")
    return [None if score is None else float(score) for score in scores]


def _listed(name: str, returned: Any) -> list[Any]:
    """The values of a list, a tuple, or an array, tensor or series with one axis."""
    if isinstance(returned, list | tuple):
        return [value.item() if getattr(value, "ndim", None) == 0 else value for value in returned]
    shape = getattr(returned, "shape", None)
    if shape is None or not hasattr(returned, "tolist"):
        problem = f"{name} returned {_short(returned)} ({type(returned).__name__}), expected a list"
        raise RewardError("REW01", problem, fix=_ONE_EACH)
    if len(shape) != 1:
        problem = f"{name} returned a {type(returned).__name__} of shape {tuple(shape)}, expected one axis"
        raise RewardError("REW01", problem, fix=_ONE_EACH)
    return returned.tolist()


def _wrong(score: Any, limit: float) -> str | None:
    """What keeps a value from being a score, or None."""
    if isinstance(score, bool | str | bytes) or not hasattr(score, "__float__") or hasattr(score, "shape"):
        return f"expected a number, found {type(score).__name__}"
    try:
        number = float(score)
    except (TypeError, ValueError, OverflowError) as error:
        return f"expected a float ({error})"
    if not math.isfinite(number):
        return _NOT_FINITE
    return f"its magnitude is above the limit {limit:g}" if abs(number) > limit else None


def column_of(name: str, reference: str, columns: Mapping[str, Any]) -> Any:
    """The column that a metric compares with. Raises RewardError REW04 when the prompt data has none of that name."""
    if reference not in columns:
        found = f"found {', '.join(columns)}" if columns else "found none beside prompt"
        problem = f"{name} compares with the column '{reference}', which the prompt data lacks; {found}"
        raise RewardError("REW04", problem, fix=f"add '{reference}' to the prompt rows, or correct `reference`")
    return columns[reference]


def _require_columns(name: str, function: RewardFunction, columns: Mapping[str, Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD and p.kind is not p.VAR_POSITIONAL]
    given = getattr(function, "given", GIVEN["batch"])
    wanted = [p.name for p in named if p.default is p.empty and p.name not in given]
    missing = next((column for column in wanted if column not in columns), None)
    if missing is None:
        return
    own = [column for column in columns if column not in given]
    found = f"found {', '.join(own)}" if own else "found none beside prompt"
    problem = f"{name} needs '{missing}', which is no column of the prompt data and no argument; {found}"
    fix = _OTHERWISE.get(missing, f"add '{missing}' to the prompt rows, or give it a default")
    raise RewardError("REW04", problem, fix=fix)


def _raised(name: str, function: RewardFunction, error: BaseException, on: str) -> RewardError:
    """REW03 with the line of the user's file that failed."""
    own = source_file(function)
    frames = traceback.extract_tb(error.__traceback__)
    where = next((frame for frame in reversed(frames) if frame.filename == own), frames[-1])
    told = " ".join(str(error).split())
    problem = f"{name} raised {type(error).__name__}{f': {told}' if told else ''} at {where.filename}:{where.lineno}"
    return RewardError("REW03", f"{problem} on {on}", fix="mend that line")


def _culprit(
    function: RewardFunction, prompts: Sequence[Any], completions: Sequence[str], columns: Mapping[str, Any]
) -> int | None:
    """The first sample on which the function raises when it is called with that one alone."""
    for i in range(len(completions)):
        row = {k: v[i : i + 1] if isinstance(v, list) and len(v) == len(completions) else v for k, v in columns.items()}
        try:
            function(prompts=prompts[i : i + 1], completions=completions[i : i + 1], **row)
        except (Exception, SystemExit):
            return i
    return None


def _sample(i: int, prompts: Sequence[Any], completions: Sequence[str]) -> str:
    return f"sample {i} (prompt {str(prompts[i])[:_SHOWN]!r}, completion {completions[i][:_SHOWN]!r})"


def _short(value: Any) -> str:
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 2 * _SHOWN else shown[: 2 * _SHOWN] + "..."
