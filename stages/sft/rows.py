"""Rendered demonstrations as the columns that TRL's SFTTrainer takes."""

from pathlib import Path

from datasets import Dataset

from stages.base import InputError
from stages.render import Rendered, without_target
from stages.sft.config import SFTConfig


def dataset(rows: list[Rendered], config: SFTConfig, path: Path) -> Dataset:
    """Rows as TRL's prepared columns; labels are -100 where there is no loss, by construction.

    Raises InputError DATA04 when more than 5 % of them have nothing to train on.
    """
    empty = set(without_target(rows, config.max_length))
    if len(empty) > 0.05 * len(rows):
        raise InputError(
            "DATA04",
            f"{path}: {len(empty)} of {len(rows)} rows have no target token, "
            f"their prompts are {config.max_length} tokens or longer "
            f"(rows {[i + 1 for i in sorted(empty)[:3]]})",
            fix="raise sft.max_length",
        )
    if empty:
        print(f"{path}: {len(empty)} rows without target tokens dropped", flush=True)
    return Dataset.from_list([_columns(r, config) for i, r in enumerate(rows) if i not in empty])


def _columns(row: Rendered, config: SFTConfig) -> dict[str, list[int]]:
    ids = row.ids
    labels = [-100] * len(row.prompt_ids) + list(row.completion_ids) if config.completion_only_loss else list(ids)
    if config.packing:
        return {"input_ids": ids, "labels": labels}
    cut = slice(config.max_length)
    return {"input_ids": ids[cut], "labels": labels[cut], "length": len(ids[cut])}
