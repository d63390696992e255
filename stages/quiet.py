"""Keeps other libraries' bars and notices out of a stage's output, which is for people."""

import sys
import warnings

import transformers


def quiet_libraries() -> None:
    """Errors of transformers and datasets still show; their bars, hints and announcements of v6 do not."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if "datasets" in sys.modules:  # PPO does without it, and without the 90 MB that importing it takes
        sys.modules["datasets"].disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)`")  # the first step may be left out
