"""Rendered demonstrations as what SFT trains on: which tokens, with which loss mask. Columns are TRL's."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from stages.base import InputError
from stages.data import listed
from stages.render import Rendered
from stages.sft.config import SFTConfig

MAX_WITHOUT_TARGET = 0.05
"""Fraction of rows without target tokens above which the limit does not fit the data."""


def has_target(row: Rendered, config: SFTConfig) -> bool:
    """Whether something of the completion lies within `max_length`, so that there is something to learn."""
    return len(row.prompt_ids) < config.max_length


def columns(row: Rendered, config: SFTConfig) -> dict[str, list[int]]:
    """Ids and labels within `max_length`; labels are -100 where there is no loss, by construction."""
    ids, cut = row.ids, slice(config.max_length)
    labels = [-100] * len(row.prompt_ids) + list(row.completion_ids) if config.completion_only_loss else list(ids)
    return {"input_ids": ids[cut], "labels": labels[cut]}


def trainable(
    rows: Sequence[Rendered], config: SFTConfig, path: Path, numbers: Sequence[int] | None = None
) -> tuple[list[Rendered], list[str]]:
    """The rows that are trained on, and what is to be told of the others; `numbers` are the rows' places in the file.

    Raises InputError DATA04 when more than 5 % of them have nothing to train on.
    """
    numbers = numbers or range(1, len(rows) + 1)
    empty = [(n, row) for n, row in zip(numbers, rows, strict=True) if not has_target(row, config)]
    if len(empty) > MAX_WITHOUT_TARGET * len(rows):
        raise InputError(
            "DATA04",
            f"{path}: {len(empty)} of {len(rows)} rows have no target token, their prompts have "
            f"{config.max_length} tokens or more (median {median(len(r.prompt_ids) for _, r in empty):.0f}; "
            f"rows {listed([n for n, _ in empty])})",
            fix=f"raise sft.max_length; the longest row has {max(len(row.ids) for row in rows)} tokens",
        )
    told = [f"{path}: {len(empty)} of {len(rows)} rows without target tokens are left out"] if empty else []
    return [row for row in rows if has_target(row, config)], told
