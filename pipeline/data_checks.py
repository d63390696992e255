"""The data files of all enabled stages, read before anything else is done with them. Imports no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config import CheckConfig, PipelineConfig
from pipeline.findings import Findings
from pipeline.lineage import data_of, enabled_steps
from pipeline.problems import missing_path
from stages.base import InputError
from stages.data import Row, listed, without_equal_pairs
from stages.same_rows import contradicted, repeated, shared

Rows = dict[str, list[Row]]
"""The rows of a file by its role, such as `prompts.train`."""
PARTS = {"demonstrations": "sft", "preferences": "reward_model", "prompts": "ppo"}
"""The stage that first reads a kind of rows."""


def data_files(config: PipelineConfig, found: Findings) -> dict[str, Path]:
    """Every data file that an enabled stage reads, by role; CONF08 where a stage has none."""
    files: dict[str, Path] = {}
    for step in enabled_steps(config):
        try:
            files |= data_of(config, step)
        except InputError as error:
            found.errors.append(error)
    return files


def read_data(config: PipelineConfig, files: Mapping[str, Path], deferred: bool, found: Findings) -> Rows:
    """The rows of all files that can be read; `deferred` files may still be made by the prepare script."""
    from stages.classification import read_sft_rows
    from stages.data import read_pairs, read_prompts

    readers = {
        "demonstrations": lambda path: read_sft_rows(path, config.sft),
        "preferences": read_pairs,
        "prompts": read_prompts,
    }
    rows: Rows = {}
    for role, path in files.items():
        if not path.is_file():
            if not deferred or path.exists():
                found.errors.append(_no_file(path, f"data.{role}"))
            continue
        try:
            rows[role] = readers[role.partition(".")[0]](path)
        except InputError as error:
            found.errors.append(error)
        except OSError as error:
            problem = f"data.{role}: {path} cannot be read ({error.strerror})"
            found.errors.append(InputError("PATH01", problem, fix="check its permissions"))
    return rows


def counts(rows: Rows) -> dict[str, int]:
    """How many rows of each role are trained on: all but pairs with equal sides."""
    return {role: len(without_equal_pairs(of_role)) for role, of_role in rows.items()}


def check_data(files: Mapping[str, Path], rows: Rows, limits: CheckConfig, found: Findings) -> None:
    """Say what is in each file; count repeats, held-out rows that are training rows, and pairs that contradict.

    DATA08: too many held-out rows are training rows. DATA09: too many pairs contradict each other.
    """
    for role, of_role in rows.items():
        kind, split = role.split(".")
        path, train = files[role], rows.get(f"{kind}.train", [])
        leaked = shared(of_role, train) if split == "eval" else []
        columns = ", ".join(dict.fromkeys(column for row in of_role[:100] for column in row))
        apart = ", none of them in train" if split == "eval" and train and not leaked else ""
        found.passed(PARTS[kind], f"{path}: {len(of_role):,} rows of {columns}{apart}")
        again = repeated(of_role)
        if again:
            found.notes.append(f"{path}: {_of(again, of_role)} repeat an earlier row ({listed(again)})")
        if leaked:
            _tell_leaked(path, f"{files[f'{kind}.train']}", (leaked, of_role), limits.max_shared_rows, found)
        if kind == "preferences":
            _tell_pairs(path, of_role, limits.max_conflicting_pairs, found)


def check_sizes(config: PipelineConfig, rows: Rows, found: Findings) -> None:
    """Note where fewer prompts than a rollout or an evaluation asks for are used, and so repeated or left out."""
    train, held_out = rows.get("prompts.train"), rows.get("prompts.eval")
    if train and config.ppo.enabled and len(train) < config.ppo.rollout_batch_size:
        found.notes.append(
            f"data.prompts.train has {len(train)} rows, fewer than ppo.rollout_batch_size "
            f"{config.ppo.rollout_batch_size}: each rollout repeats prompts"
        )
    wanted = {"ppo.eval_prompts": config.ppo.eval_prompts, "evaluation.prompts": config.evaluation.prompts}
    short = [f"{key} {count}" for key, count in wanted.items() if held_out and len(held_out) < count]
    if short:
        asked = " and ".join(short)
        found.notes.append(f"data.prompts.eval has {len(held_out)} rows, fewer than {asked}: all are used")


def _no_file(path: Path, role: str) -> InputError:
    if path.is_dir():
        return InputError("PATH01", f"{role}: {path} is a folder, expected a JSONL file", fix="name the file in it")
    return missing_path(path, role)


def _tell_leaked(
    path: Path, train: str, leaked: tuple[Sequence[int], Sequence[Row]], limit: float, found: Findings
) -> None:
    numbers, rows = leaked
    told = f"{path}: {_of(numbers, rows)} are also in {train} ({listed(numbers)})"
    if len(numbers) > limit * len(rows):
        fix = f"hold out rows that training does not see, or check.max_shared_rows={_share(numbers, rows)}"
        problem = f"{told}, more than check.max_shared_rows {limit:g}"
        found.errors.append(InputError("DATA08", problem, fix=fix))
    else:
        found.notes.append(f"{told}; what is measured on them is flattered")


def _tell_pairs(path: Path, pairs: Sequence[Row], limit: float, found: Findings) -> None:
    equal = len(pairs) - len(without_equal_pairs(pairs))
    if equal:
        found.notes.append(f"{path}: {equal} of {len(pairs)} pairs have two equal sides and will be dropped")
    numbers = contradicted(pairs)
    told = f"{path}: {_of(numbers, pairs)} prefer what another row of the same prompt rejects ({listed(numbers)})"
    if len(numbers) > limit * len(pairs):
        fix = f"check whether chosen and rejected are swapped, or check.max_conflicting_pairs={_share(numbers, pairs)}"
        problem = f"{told}, more than check.max_conflicting_pairs {limit:g}"
        found.errors.append(InputError("DATA09", problem, fix=fix))
    elif numbers:
        found.notes.append(told)


def _of(numbers: Sequence[int], rows: Sequence[Row]) -> str:
    return f"{len(numbers)} of {len(rows)} rows"


def _share(numbers: Sequence[int], rows: Sequence[Row]) -> str:
    """That share, rounded up so that it is allowed."""
    return f"{min(1.0, len(numbers) / len(rows) + 0.005):.2f}"
