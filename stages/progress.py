"""One line per logged step: a bar, the time left, and the numbers worth watching."""

import sys
from collections.abc import Mapping
from time import perf_counter


class Progress:
    """Prints `stage [####----] 12/25  eta 2:31  name value ...`; the same on a terminal and in a log."""

    def __init__(self, stage: str, total: int, done: int = 0):
        self._stage, self._total, self._first = stage, total, done
        self._start = perf_counter()

    def show(self, step: int, numbers: Mapping[str, float]) -> None:
        """Report that `step` steps of the total are finished."""
        seconds = (perf_counter() - self._start) / max(step - self._first, 1) * (self._total - step)
        filled = round(20 * step / self._total)
        values = "  ".join(f"{name} {value:.3g}" for name, value in numbers.items())
        bar = "#" * filled + "-" * (20 - filled)
        print(
            f"{self._stage} [{bar}] {step}/{self._total}  eta {clock(seconds)}  {values}",
            flush=True,
            file=sys.stdout,
        )


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
