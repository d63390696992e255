"""Several mistakes told at once, and what each kind means for the exit code. Imports no torch."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from stages.base import InputError

EXIT_INPUT, EXIT_ENVIRONMENT, EXIT_DIVERGED, EXIT_STORAGE, EXIT_HANG, EXIT_LOST = 2, 3, 4, 5, 6, 7
_EXIT_BY_PREFIX = {"DEP": EXIT_ENVIRONMENT, "WB": EXIT_ENVIRONMENT, "DISK": EXIT_STORAGE, "NODE": EXIT_ENVIRONMENT}
_EXIT_BY_CODE = {"REW06": EXIT_ENVIRONMENT} | dict.fromkeys(("NODE01", "NODE02", "NODE04"), EXIT_INPUT)
"""A scoring server that is not there; mistakes in a hostfile or path, not of the hosts."""


class InputErrors(InputError):
    """A report of all mistakes found, one per line."""

    def __init__(self, errors: Sequence[InputError]):
        Exception.__init__(self, "\n".join(map(str, errors)))
        self.errors = list(errors)
        self.code = errors[0].code


def raise_together(errors: Sequence[InputError]) -> None:
    """Raises: the only error as it is, several as one InputErrors; nothing when there are none."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise InputErrors(errors)


def exit_code(error: InputError) -> int:
    """Exit code of a report: the environment's, the storage's, else the user's; of several mistakes the smallest.

    As long as one of them needs a person's hand, neither another machine nor free space helps.
    """
    told = error.errors if isinstance(error, InputErrors) else [error]
    return min(exit_of(one.code) for one in told)


def exit_of(code: str) -> int:
    """Exit code of one mistake."""
    return _EXIT_BY_CODE.get(code) or _EXIT_BY_PREFIX.get(code.rstrip("0123456789"), EXIT_INPUT)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def missing_path(path: str | Path, role: str) -> InputError:
    """The error for a path that does not exist, with the most similar path that does."""
    similar = _similar_path(Path(path))
    fix = f"did you mean {similar}?" if similar else "correct the path, or create it"
    return InputError("PATH01", f"{role}: no file or folder {str(path)!r}", fix=fix)


def _similar_path(path: Path) -> Path | None:
    existing = Path(path.anchor)
    for part in path.parts[1 if path.anchor else 0 :]:
        candidate = existing / part
        if not candidate.exists():
            siblings = [p.name for p in existing.iterdir()] if existing.is_dir() else []
            guess = nearest(part, siblings)
            if guess is None:
                return None
            candidate = existing / guess
        existing = candidate
    return existing
