"""Several reward models in one stage: what each is, what the stage says of them, and how they survive a stop."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pipeline.checkpoints import CheckpointManager
from pipeline.tracking import JsonlTracker
from stages.base import StageContext, StageResult
from stages.data import read_preferences
from stages.models.config import TuningConfig
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.members import folders_of
from stages.reward_model.quality import pair_accuracy
from stages.reward_model.stage import run_reward_model
from stages.reward_model.statistics import RewardStatistics
from stages.stopping import Interrupted, StopRequest
from tests.stages.reward_model.test_reward_stage import DEMONSTRATIONS, LORA, Stage
from tests.toy_models import context

STEPS = 3
SETTINGS = {"learning_rate": 1e-2, "batch_size": 8, "microbatch_size": 8, "log_every": 1, "max_length": 64}


class Run:
    """Attempts at one stage in one folder, as the pipeline makes them: its own store and its own log of rows."""

    def __init__(self, stage: Stage, name: str, method: dict[str, Any], **changes: Any):
        self.stage, self.folder = stage, stage.folder / name
        values = {"max_steps": STEPS, "checkpoint_every": 2, "tuning": TuningConfig(**method), **SETTINGS, **changes}
        self.config = RewardModelConfig(**values)

    def attempt(self, seed: int = 0, stop_after: int | None = None) -> StageResult:
        checkpoints = CheckpointManager(self.folder / "checkpoints", keep=2)
        found = checkpoints.latest()
        stop = StopRequest()
        tracker = _Stopping(JsonlTracker(self.folder, found[0] if found else None), stop, stop_after)
        services: StageContext = replace(
            context(self.folder, seed), tracker=tracker, checkpoints=checkpoints, stop=stop
        )
        data = self.stage.train, self.stage.held_out
        try:
            return run_reward_model(self.config, self.stage.model, *data, None, services, DEMONSTRATIONS)
        finally:
            tracker.inner.close()

    @property
    def final(self) -> Path:
        return self.folder / "final"

    def rows(self) -> list[dict[str, float]]:
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in row.items() if name != "time"} for row in rows]


class _Stopping:
    """Asks to stop once a step of the stage is logged."""

    def __init__(self, inner: JsonlTracker, stop: StopRequest, after: int | None):
        self.inner, self._stop, self._after = inner, stop, after
        self.samples = inner.samples

    def log(self, metrics: Any, step: int) -> None:
        self.inner.log(metrics, step)
        if step == self._after:
            self._stop.signal = 15


def weights(final: Path) -> dict[str, Any]:
    (file,) = final.glob("*model.safetensors")
    return load_file(file)


def same(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.fixture(scope="module", params=[{"method": "full"}, LORA], ids=["full", "lora"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, StageResult]:
    """Three members, trained without a stop."""
    run = Run(Stage(tmp_path_factory.mktemp("members")), "three", request.param, members=3)
    return run, run.attempt()


def test_each_member_is_what_a_stage_with_its_seed_makes(whole: tuple[Run, StageResult]):
    run, result = whole
    finals = folders_of(result.final)
    assert finals == [run.final, run.final / "members" / "2", run.final / "members" / "3"]
    for seed, final in enumerate(finals):
        alone = Run(run.stage, f"alone-{seed}", run.config.tuning.model_dump())
        alone.attempt(seed)
        assert same(alone.final, final)
        assert RewardStatistics.load(alone.final) == RewardStatistics.load(final)
        assert {path.name for path in alone.final.iterdir()} == {p.name for p in final.iterdir()} - {"members"}
    assert not same(finals[0], finals[1]) and not same(finals[1], finals[2])


def test_the_stage_tells_the_accuracy_of_each_and_of_their_mean(whole: tuple[Run, StageResult]):
    run, result = whole
    rows = list(read_preferences(run.stage.held_out).values())
    said = [[run.stage.scores(f, rows, side) for side in ("chosen", "rejected")] for f in folders_of(result.final)]
    each = [pair_accuracy(*sides).value for sides in said]
    mean = [[sum(scores) / 3 for scores in zip(*side, strict=True)] for side in zip(*said, strict=True)]
    headline = result.headline
    assert [headline[f"accuracy_member_{i}"] for i in (1, 2, 3)] == each
    assert headline["accuracy"] == pair_accuracy(*mean).value
    assert headline["accuracy_mean"] == pytest.approx(sum(each) / 3)
    assert (headline["members"], headline["steps"], headline["pairs"]) == (3, 3 * STEPS, 48)


def test_metrics_of_members_are_apart_on_the_steps_of_the_stage(whole: tuple[Run, StageResult]):
    run, result = whole
    at = {
        name: [row["step"] for row in run.rows() if f"reward_model/{name}" in row]
        for name in ("loss", "member_2/loss", "member_3/loss", "ensemble/eval_accuracy")
    }
    assert at["loss"] == [1, 2, 3] and at["member_2/loss"] == [4, 5, 6] and at["member_3/loss"] == [7, 8, 9]
    assert at["ensemble/eval_accuracy"] == [9]
    assert run.rows()[-1]["reward_model/ensemble/eval_accuracy"] == result.headline["accuracy"]


def test_only_the_model_and_its_log_are_left(whole: tuple[Run, StageResult]):
    run, _ = whole
    assert {path.name for path in run.folder.iterdir()} <= {
        *("checkpoints", "final", "metrics.jsonl", "samples.jsonl", "report.json"),
        ".trainer",
    }


@pytest.mark.parametrize(("asked", "after"), [(3, 3), (4, 5), (5, 6)])
def test_a_stopped_stage_goes_on_with_the_member_it_was_at(asked: int, after: int, whole: tuple[Run, StageResult]):
    run, result = whole
    again = Run(run.stage, f"stopped-{after}", run.config.tuning.model_dump(), members=3)
    with pytest.raises(Interrupted) as stop:
        again.attempt(stop_after=asked)
    assert stop.value.step == after
    first = again.folder / "members" / "1" / "final"
    untouched = {path.name: path.stat().st_ino for path in first.iterdir()}
    resumed = again.attempt()
    assert all(same(a, b) for a, b in zip(folders_of(again.final), folders_of(run.final), strict=True))
    assert resumed.headline == result.headline and resumed.details == result.details
    assert again.rows() == run.rows()
    found = {path.name: path.stat().st_ino for path in again.final.iterdir() if path.name in untouched}
    assert found == untouched


def test_a_finished_member_that_was_changed_is_trained_again(
    whole: tuple[Run, StageResult], capfd: pytest.CaptureFixture[str]
):
    run, _ = whole
    again = Run(run.stage, "changed", run.config.tuning.model_dump(), members=3)
    with pytest.raises(Interrupted):
        again.attempt(stop_after=STEPS)
    final = again.folder / "members" / "1" / "final"
    (final / "config.json" if (final / "config.json").exists() else final / "adapter_config.json").write_text("{}")
    again.attempt()
    assert f"{final} differs from what was written there; member 1 is trained again" in capfd.readouterr().out
    assert all(same(a, b) for a, b in zip(folders_of(again.final), folders_of(run.final), strict=True))


def test_a_stage_that_ended_before_it_was_recorded_says_the_same_again(whole: tuple[Run, StageResult]):
    run, result = whole
    written = (run.final / "reward_model.json").stat().st_mtime_ns
    again = run.attempt()
    assert again.headline == result.headline and again.details == result.details
    assert (run.final / "reward_model.json").stat().st_mtime_ns == written


def test_a_single_reward_model_leaves_no_trace_of_members(tmp_path: Path):
    run = Run(Stage(tmp_path), "one", LORA)
    run.attempt()
    assert not [path for path in run.folder.rglob("*member*")]
    assert [row["step"] for row in run.rows() if "reward_model/eval_accuracy" in row] == [STEPS]
