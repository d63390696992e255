"""Numbers that are not finite: told with the batch they came from, perhaps skipped, never saved."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.base import Diverged
from stages.redaction import redactor


class NonFinite(Diverged):
    """A tensor with a NaN or an infinity, found before an optimizer used it."""

    def __init__(self, problem: str, fix: str, tensor: str, tensors: Mapping[str, Tensor]):
        super().__init__(f"{problem}; fix: {fix}")
        self.problem, self.fix, self.tensor = problem, fix, tensor
        self.tensors = tensors
        """All that was known of the batch, the bad tensor included."""


def dump(folder: Path, tensor: str, tensors: Mapping[str, Tensor], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a bad batch: `batch.safetensors`, and `batch.json` with the name of the bad tensor and the texts."""
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, aside / "batch.safetensors")
    text = redactor().values(json.dumps({"tensor": tensor, "rows": list(rows)}, indent=1, ensure_ascii=False))
    (aside / "batch.json").write_text(text, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    return folder


@dataclass
class Skips:
    """The steps that a stage left out because their numbers were not finite, and how many more it may."""

    on_nonfinite: Literal["stop", "rollback"]
    allowed: int
    """Steps of the whole stage."""
    steps: list[int] = field(default_factory=list)
    overflows: int = 0
    """Steps left out to lower the loss scale of float16, in this attempt; these are part of training with it."""

    @property
    def left_out(self) -> int:
        """Steps without an update."""
        return len(self.steps) + self.overflows

    @property
    def possible(self) -> bool:
        """Whether a step may be left out at all."""
        return self.on_nonfinite == "rollback"

    def skip(self, step: int, error: Exception, where: Path) -> None:
        """Count the step and tell so; `where` is the dump of its batch.

        Raises Diverged with the error's text and that folder when no step may be left out, or no further one.
        """
        if isinstance(error, NonFinite):
            problem, fix = error.problem, error.fix
        else:
            problem, fix = str(error).rsplit("; fix: ", 1)
            problem = f"{problem} in step {step}"
        told = f"{problem}; its batch is in {where}"
        if not self.possible:
            raise Diverged(f"{told}; fix: {fix}") from error
        if len(self.steps) >= self.allowed:
            raise Diverged(f"{told}; {len(self.steps)} batches were skipped before; fix: {fix}") from error
        self.steps.append(step)
        print(f"{told}; skipped, {len(self.steps)} of at most {self.allowed}", flush=True)


def require_finite_state(what: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise Diverged NUM01, naming the first tensor that is not finite, before `what` is saved."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise Diverged(
                f"[NUM01] {what}: {name} is not finite, so it is not saved; "
                "fix: lower the learning rate; the last checkpoint is intact"
            )


def trained(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """The parameters of a model that training changes."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def named_tensors(tree: Mapping[Any, Any], path: str = "") -> Iterable[tuple[str, Tensor]]:
    """The tensors of nested dicts by their paths."""
    for key, value in tree.items():
        name = f"{path}/{key}" if path else str(key)
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            yield from named_tensors(value, name)


def copied(tree: Mapping[Any, Any]) -> dict[Any, Any]:
    """Nested dicts with tensors of their own."""
    return {
        key: copied(value) if isinstance(value, Mapping) else value.clone() if isinstance(value, Tensor) else value
        for key, value in tree.items()
    }
