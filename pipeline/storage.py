"""Disk space: what a run needs before it starts, and how a full disk is told. Imports no torch."""

import errno
import json
import math
import shutil
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config import STAGES, PipelineConfig
from pipeline.rundir import RunDir
from stages.base import InputError
from stages.models.config import TuningConfig

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAID = ("No space left on device", "Disk quota exceeded", "File too large", "inline_container")
"""How libraries that hide the error number say it; the last is torch's writer, which can fail in no other way."""
_FLOAT, _ADAM = 4, 2
"""Bytes of a trained weight, which is float32 always; moments that AdamW keeps of it."""
_SMALL = 1 << 20
"""Bytes of state files without tensors, rounded up."""
_QUERY_AND_VALUE = ("q_proj", "v_proj", "query", "value", "c_attn", "query_key_value", "qkv")


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, says that a disk, a quota or a file's size limit is full."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(text in str(error) for text in _SAID):
            return True
        error = error.__cause__ or error.__context__
    return False


def full_error(error: BaseException, run: Path, needed: int | None) -> InputError:
    """DISK01 for a disk that became full while something was written to a run."""
    need = f"about {needed:,}" if needed else "an unknown number of"
    problem = f"the disk of {run} is full: the run needs {need} bytes more at most, free {free_bytes(run):,} ({error})"
    fix = "free space, or lower keep_checkpoints; what was saved before is intact and the same command goes on from it"
    return InputError("DISK01", problem, fix=fix)


def free_bytes(folder: Path) -> int:
    """Free bytes where a folder is or would be."""
    return shutil.disk_usage(_existing(folder)).free


def writing_errors(config: PipelineConfig) -> list[InputError]:
    """DISK02 when no file can be made where the run will write, DISK01 when nothing can be written into it."""
    run = Path(config.run.root) / config.run.name
    try:
        with tempfile.TemporaryFile(dir=_existing(run)) as file:
            file.write(b"written")
            file.flush()
    except OSError as error:
        if is_full(error):
            return [
                InputError("DISK01", f"{run}: no byte is free ({error})", fix="free space, or use another run.root")
            ]
        return [InputError("DISK02", f"{run} cannot be written ({error.strerror})", fix="use another run.root")]
    return []


def room_errors(config: PipelineConfig) -> list[InputError]:
    """DISK01 when there is no room for the checkpoints and models of a run."""
    run = RunDir(Path(config.run.root) / config.run.name)
    needed, free = bytes_needed(config, run), free_bytes(run.path)
    if needed is None or needed <= free:
        return []
    problem = f"{run.path}: checkpoints and models need about {needed:,} bytes more, free {free:,}"
    fix = "free space, lower keep_checkpoints, set checkpoint_every: 0, or use another run.root"
    return [InputError("DISK01", problem, fix=fix)]


def room_line(config: PipelineConfig) -> str:
    """What was found of the disk, in one line."""
    run = RunDir(Path(config.run.root) / config.run.name)
    needed = bytes_needed(config, run)
    need = "what the model needs is known once it is loaded" if needed is None else f"needs about {needed:,} bytes"
    return f"disk: {need}, free {free_bytes(run.path):,}"


def bytes_needed(config: PipelineConfig, run: RunDir) -> int | None:
    """Most bytes that the enabled, unfinished stages will hold at once, less what they hold already.

    An estimate, rather too large than too small: every trained weight with its two moments in float32, once more
    while a checkpoint is written. None where the size of the base model is not known before it is loaded.
    """
    shapes = weight_shapes(Path(config.model.path))
    if shapes is None:
        return None
    total = peak = 0
    for stage in STAGES:
        section, folder = getattr(config, stage), run.stage(stage)
        if not section.enabled or folder.finished:
            continue
        model, checkpoint = stage_bytes(config, stage, shapes)
        every = section.checkpoint_every
        kept = section.keep_checkpoints * checkpoint if every else 0
        held = _bytes_of(folder.path)
        peak = max(peak, total + kept + (checkpoint if every else 0) + 2 * model - held)
        total += kept + model - held
    return max(0, peak)


def stage_bytes(config: PipelineConfig, stage: str, shapes: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """Bytes of a stage's final model, or of all of them, and of one checkpoint."""
    tokenizer = _tokenizer_bytes(Path(config.model.path))
    trained = _FLOAT * trained_numbers(shapes, getattr(config, stage).tuning)
    model = trained + tokenizer + _SMALL
    if stage != "ppo":
        models = config.reward_model.members if stage == "reward_model" else 1
        return models * model, model + _ADAM * trained + _SMALL
    average = trained if config.ppo.ema_decay else 0
    return model, 2 * (1 + _ADAM) * trained + average + model + _SMALL  # policy, value model, the best policy so far


def trained_numbers(shapes: Mapping[str, Sequence[int]], tuning: TuningConfig) -> int:
    """How many numbers a method trains on weights of these shapes, at most; of unknown PEFT types 5 %."""
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    everything = sum(math.prod(shape) for shape in shapes.values())
    if tuning.method == "full":
        return everything
    if tuning.method == "lora":
        inner = {n: shape for n, shape in matrices.items() if "embed" not in n and "lm_head" not in n}
        near = {n: shape for n, shape in inner.items() if any(part in n for part in _QUERY_AND_VALUE)}
        adapted = near if tuning.targets == "auto" and near else inner
        return sum(tuning.r * sum(shape) + (shape[0] if tuning.dora else 0) for shape in adapted.values())
    return everything // 20


def weight_shapes(path: Path) -> dict[str, list[int]] | None:
    """Shape of every weight from the headers of the safetensors files; None for a model that is not such a folder."""
    shapes: dict[str, list[int]] = {}
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else []:
        if not file.is_file():
            return None  # a pipe would be waited for; it is refused by those who open the model
        with file.open("rb") as stream:
            try:
                header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
                shapes |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
            except (struct.error, ValueError, KeyError, TypeError, MemoryError, OverflowError):
                return None  # a damaged model is told of by those who open it
    return shapes or None


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def _tokenizer_bytes(path: Path) -> int:
    kinds = (".json", ".model", ".txt", ".jinja")
    return sum(file.stat().st_size for file in path.glob("*") if file.suffix in kinds) if path.is_dir() else 0


def _bytes_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
