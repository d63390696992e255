"""Damaged checkpoints: R5, R6."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from pipeline.checkpoints import CheckpointManager
from pipeline.hashing import sha256_of
from pipeline.identity import Identity
from pipeline.seals import MANIFEST
from scripts.benchmark.scoreboard import Figure, Row

FLIPS = 200
IDENTITY = Identity({"stage": "ppo", "ppo.learning_rate": 1e-5})


def flip_bits(work: Path, quick: bool) -> Figure:
    """One random bit of one file of the newest of two checkpoints, then read the folder as a new process would."""
    folder = _two_checkpoints(work)
    files = sorted(path for path in (folder / "step-000002").rglob("*") if path.is_file())
    draws = random.Random(0)
    missed = []
    flips = 60 if quick else FLIPS
    for number in range(flips):
        path = files[number % len(files)]
        content = path.read_bytes()
        bit = draws.randrange(8 * len(content))
        path.write_bytes(_flipped(content, bit))
        told: list[str] = []
        found = CheckpointManager(folder, 2, IDENTITY, tell=told.append).latest()
        named = len(told) == 1 and f"{path}:" in told[0] + ":" and f"resuming from {folder}/step-000001" in told[0]
        if found != (1, folder / "step-000001") or not named:
            missed.append(f"{path.name} bit {bit}: {found} {told}")
        path.write_bytes(content)
    return Figure(f"{flips - len(missed)} of {flips} found and named", not missed, {"missed": missed})


def _flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _two_checkpoints(work: Path) -> Path:
    """Steps 1 and 2 as the trainers write them: safetensors, torch files, JSON, an empty file."""
    import torch
    from safetensors.torch import save_file

    def write(folder: Path) -> None:
        save_file({"a": torch.arange(5000, dtype=torch.float32)}, folder / "model.safetensors")
        torch.save({"exp_avg": torch.ones(2000)}, folder / "optimizer.pt")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": 2, "log_history": list(range(100))}))
        (folder / "best").mkdir()
        (folder / "best" / "adapter_config.json").write_text('{"r": 16}')

    checkpoints = CheckpointManager(work / "checkpoints", 2, IDENTITY)
    checkpoints.save(1, write)
    checkpoints.save(2, write)
    return checkpoints.folder


def _manifest(change: Callable[[dict], None], sealed: bool = True) -> Callable[[Path], None]:
    """A damage of the manifest's content; `sealed` with a digest that fits, as only a program would write it."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / MANIFEST).read_text())
        del content["seal"]
        change(content)
        content["seal"] = sha256_of(content) if sealed else "0" * 64
        (folder / MANIFEST).write_text(json.dumps(content))

    return damage


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


def _swap(one: Path, other: Path) -> None:
    one.rename(one.with_name("x"))
    other.rename(one)
    one.with_name("x").rename(other)


def _truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.pt", "trainer_state.json"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights truncated by a byte": lambda f: _truncate(f / WEIGHTS, -1),
    "weights truncated to half": lambda f: _truncate(f / WEIGHTS, 10_000),
    "weights empty": lambda f: (f / WEIGHTS).write_bytes(b""),
    "weights missing": lambda f: (f / WEIGHTS).unlink(),
    "tail of the weights zeroed": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-64] + bytes(64)),
    "a byte more": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"\0"),
    "optimizer empty": lambda f: (f / OPTIMIZER).write_bytes(b""),
    "optimizer missing": lambda f: (f / OPTIMIZER).unlink(),
    "state of the trainer edited": lambda f: (f / STATE).write_text((f / STATE).read_text().replace("2", "3", 1)),
    "nested file missing": lambda f: (f / "best/adapter_config.json").unlink(),
    "nested folder missing": lambda f: shutil.rmtree(f / "best"),
    "a file that does not belong": lambda f: (f / "extra.bin").write_bytes(b"x"),
    "an empty file that does not belong": lambda f: (f / "best/extra").write_bytes(b""),
    "two files swapped": lambda f: _swap(f / WEIGHTS, f / OPTIMIZER),
    "a file renamed": lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"),
    "a file in another letter case": lambda f: (f / WEIGHTS).rename(f / "Model.safetensors"),
    "a folder in the place of a file": lambda f: _replace(f / WEIGHTS, Path.mkdir),
    "a link to a file of the same content": lambda f: _replace(
        f / WEIGHTS, lambda p: p.symlink_to(f.parent / "step-000001" / WEIGHTS)
    ),
    "a dangling link": lambda f: _replace(f / WEIGHTS, lambda p: p.symlink_to("nowhere")),
    "a pipe in the place of a file": lambda f: _replace(f / OPTIMIZER, os.mkfifo),
    "manifest missing": lambda f: (f / MANIFEST).unlink(),
    "manifest empty": lambda f: (f / MANIFEST).write_bytes(b""),
    "manifest cut": lambda f: _truncate(f / MANIFEST, 100),
    "manifest not text": lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "manifest a list": lambda f: (f / MANIFEST).write_text("[]"),
    "manifest nested too deep": lambda f: (f / MANIFEST).write_text("[" * 100_000),
    "manifest a folder": lambda f: _replace(f / MANIFEST, Path.mkdir),
    "manifest a pipe": lambda f: _replace(f / MANIFEST, os.mkfifo),
    "manifest without its digest": lambda f: (f / MANIFEST).write_text('{"format": 2}'),
    "manifest with another digest": _manifest(lambda c: None, sealed=False),
    "manifest of another step": lambda f: shutil.copy(f.parent / "step-000001" / MANIFEST, f / MANIFEST),
    "manifest of an earlier format": _manifest(lambda c: c.update(format=1)),
    "manifest with a format that is text": _manifest(lambda c: c.update(format="two")),
    "manifest with files as a list": _manifest(lambda c: c.update(files=[])),
    "manifest with a size that is text": _manifest(lambda c: c["files"][WEIGHTS].update(bytes="many")),
    "manifest without an identity": _manifest(lambda c: c.pop("identity")),
    "manifest that names a file outside": _manifest(lambda c: c["files"].update({"../x": {"sha256": "", "bytes": 0}})),
    "everything gone but the folder": lambda f: _replace(f, Path.mkdir),
    "a file in the place of the checkpoint": lambda f: _replace(f, lambda p: p.write_text("")),
    "a link in the place of the checkpoint": lambda f: _replace(f, lambda p: p.symlink_to("step-000001")),
}


def damage_everything(work: Path, quick: bool) -> Figure:
    """Every damage to the newest of two checkpoints: passed over with its reason, the older one taken, no traceback."""
    original = _two_checkpoints(work / "original")
    bad = []
    for name, damage in DAMAGES.items():
        folder = work / "damaged"
        shutil.copytree(original, folder)
        damage(folder / "step-000002")
        told: list[str] = []
        try:
            found = CheckpointManager(folder, 2, IDENTITY, tell=told.append).latest()
        except Exception as error:  # what must not happen
            found = error
        reasoned = len(told) == 1 and told[0].startswith(f"[CKPT01] {folder}/step-000002")
        if found != (1, folder / "step-000001") or not reasoned:
            bad.append(f"{name}: {found!r} {told}")
        shutil.rmtree(folder)
    return Figure(f"{len(DAMAGES) - len(bad)} of {len(DAMAGES)} damages told, 0 tracebacks", not bad, {"bad": bad})


ROWS: dict[str, Row] = {
    "R5": Row("one flipped bit anywhere is found, named, and the checkpoint before is taken", "200 of 200", flip_bits),
    "R6": Row(
        "truncated, missing, swapped, foreign files: told by name, never a traceback",
        "100 % of 30 damages",
        damage_everything,
    ),
}
