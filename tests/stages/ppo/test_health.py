"""Checks that end a training which can no longer mean anything."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stages.base import Diverged, StageContext
from stages.ppo.held_out import HeldOut
from stages.ppo.loop import PPOLoop
from stages.ppo.prompts import PromptSet
from stages.progress import Progress
from tests.ppo_checks import small_gpt2
from tests.ppo_toys import text


class Recorder:
    """A tracker that keeps the last row."""

    row: Mapping[str, float] = {}

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.row = metrics

    def samples(self, rows: Any, step: int) -> None: ...


def loop(folder: Path, **config: Any) -> PPOLoop:
    """A loop over a policy of which about one completion in six is its stop token alone."""
    toy = small_gpt2(**config)
    prompts = PromptSet(toy.problem.prompts, [text(p) for p in toy.problem.prompts], {})
    context = StageContext(folder, Recorder(), checkpoints=None, seed=0)
    held_out = HeldOut(toy.trainer, None, None, context, publish=None)
    return PPOLoop(toy.trainer, prompts, held_out, context, compute="float32")


def test_empty_completions_are_counted_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = loop(tmp_path, health={"empty_completions": {"patience": 1}})
    made.iterate(Progress("ppo", 4, 0))
    fraction = made.context.tracker.row["rollout/empty_fraction"]
    assert 0.1 <= fraction < 0.5
    told = f"[HEALTH01] step 1: empty_completions: rollout/empty_fraction is {fraction:.4g}, above 0.1; likely cause: "
    assert told in capsys.readouterr().out
    assert made.context.tracker.row["health/empty_completions"] == 1.0


def test_a_rollout_of_mostly_empty_completions_ends_the_training(tmp_path: Path):
    made = loop(tmp_path, max_empty_fraction=0.04)
    with pytest.raises(Diverged, match=r"\[PPO01\] step 1: .* are empty .*, more than ppo.max_empty_fraction 0.04;"):
        made.iterate(Progress("ppo", 4, 0))
