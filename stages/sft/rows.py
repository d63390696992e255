"""Rendered demonstrations as the dataset that TRL's SFTTrainer takes."""

from pathlib import Path
from typing import Any

from datasets import Dataset

from stages.dealing import WEIGHT
from stages.render import Rendered
from stages.sft.config import SFTConfig
from stages.sft.targets import columns, trainable


def dataset(rows: list[Rendered], config: SFTConfig, path: Path) -> Dataset:
    """Rows as TRL's prepared columns, those without target tokens left out, aloud.

    Raises InputError DATA04 when more than 5 % of them have nothing to train on.
    """
    kept, told = trainable(rows, config, path)
    for line in told:
        print(line, flush=True)
    prepared = [columns(row, config) for row in kept]
    if not config.packing:  # what groups rows by length reads it
        prepared = [row | {"length": len(row["input_ids"])} for row in prepared]
    return Dataset.from_list(prepared)


def without_weight(row: dict[str, Any]) -> dict[str, Any]:
    """A dealt row as a collator takes it; a filler is one token without a target."""
    rest = {name: value for name, value in row.items() if name != WEIGHT}
    return rest if row[WEIGHT] else rest | {"input_ids": row["input_ids"][:1], "labels": [-100]}
