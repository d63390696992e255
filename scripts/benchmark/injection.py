"""Numbers that are not finite, put into a stage as it runs.

python -m scripts.benchmark.injection STAGE:TENSOR STEP,STEP RUN_DIR
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from scripts.benchmark.spoilt_reward import length

Spoil = Callable[[nn.Module], Any]


def _weight(module: nn.Module) -> None:
    """An infinite weight in a layer that every token passes."""
    with torch.no_grad():
        next(p for n, p in module.named_parameters() if n.endswith("down_proj.weight")).view(-1)[0] = float("inf")


def _head(module: nn.Module) -> None:
    with torch.no_grad():
        next(p for n, p in module.named_parameters() if n.endswith("score.weight")).view(-1)[0] = float("nan")


def _gradient(module: nn.Module) -> None:
    """One NaN in the next gradient of a layer."""
    parameter = next(p for n, p in module.named_parameters() if n.endswith("down_proj.weight"))
    handle = parameter.register_hook(lambda gradient: (handle.remove(), gradient * float("nan"))[1])


SITES: dict[tuple[str, str], Spoil | None] = {
    ("sft", "logprobs"): _weight,
    ("sft", "a gradient"): _gradient,
    ("reward_model", "scores"): _head,
    ("reward_model", "a gradient"): _gradient,
    ("ppo", "logprobs"): _weight,
    ("ppo", "values"): _head,
    ("ppo", "score"): None,
    ("ppo", "policy/loss"): None,
    ("ppo", "policy/grad_norm"): _gradient,
}
"""Stage and tensor that turns bad: by what, or by PPO's reward function and loss themselves."""


@contextmanager
def injected(stage: str, tensor: str, steps: tuple[int, ...]) -> Iterator[None]:
    """Inside, that tensor of that stage is not finite in those steps, counted from 1."""
    spoil = SITES[stage, tensor]
    try:
        with _in_ppo(tensor, steps, spoil) if stage == "ppo" else _in_trainer(steps, spoil):
            yield
    finally:
        length.bad = False


@contextmanager
def _in_trainer(steps: tuple[int, ...], spoil: Spoil) -> Iterator[None]:
    from stages.supervision import Supervision

    class Spoiler(TrainerCallback):
        def on_step_begin(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            model: nn.Module,
            **kwargs: Any,
        ) -> None:
            if state.global_step + 1 in steps:
                spoil(model)

    callbacks = Supervision.callbacks
    with mock.patch.object(Supervision, "callbacks", lambda self, *names: [*callbacks(self, *names), Spoiler()]):
        yield


@contextmanager
def _in_ppo(tensor: str, steps: tuple[int, ...], spoil: Spoil | None) -> Iterator[None]:
    from stages.ppo import losses
    from stages.ppo.trainer import PPOTrainer

    iterate, policy_loss, bad = PPOTrainer.step, losses.policy_loss, False

    def step(self: PPOTrainer, batch: Any) -> Any:
        nonlocal bad
        bad = self.finished + 1 in steps
        if bad and spoil:
            spoil((self.value if tensor == "values" else self.policy).module)
        if tensor == "score":
            length.bad = bad
        return iterate(self, batch)

    def loss(*given: Any) -> torch.Tensor:
        return policy_loss(*given) * (float("inf") if bad and tensor == "policy/loss" else 1.0)

    with mock.patch.object(PPOTrainer, "step", step), mock.patch.object(losses, "policy_loss", loss):
        yield


def main() -> None:
    site, steps, run = sys.argv[1:]
    stage, _, tensor = site.partition(":")
    from pipeline.rundir import RunDir
    from pipeline.stage_process import run_stage

    with injected(stage, tensor, tuple(map(int, steps.split(",")))):
        sys.exit(run_stage(RunDir.open(Path(run)), stage))


if __name__ == "__main__":
    main()
