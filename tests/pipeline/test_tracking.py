"""Metrics reach the disk row by row; W&B may fail in any way."""

import json

import pytest

from pipeline.config import TrackingConfig
from pipeline.tracking import JsonlTracker, TrackedStage, WandbTracker, open_tracker


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_row_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    tracker = JsonlTracker(tmp_path, None)
    tracker.log({"sft/loss": 2.5}, 1)
    tracker.samples([{"prompt": "é", "score": 1.0}, {"prompt": "b", "score": None}], 1)
    (metrics,) = rows(tmp_path / "metrics.jsonl")
    assert metrics.pop("time") > 1e9
    assert metrics == {"step": 1, "sft/loss": 2.5}
    assert rows(tmp_path / "samples.jsonl") == [
        {"step": 1, "prompt": "é", "score": 1.0},
        {"step": 1, "prompt": "b", "score": None},
    ]


def test_values_that_are_not_finite_become_null(tmp_path):
    JsonlTracker(tmp_path, None).log({"a": float("nan"), "b": float("inf"), "c": 1}, 1)
    assert [rows(tmp_path / "metrics.jsonl")[0][name] for name in "abc"] == [None, None, 1.0]


def test_resuming_drops_rows_beyond_the_step_and_a_row_that_was_cut_off(tmp_path):
    tracker = JsonlTracker(tmp_path, None)
    for step in (1, 2, 3):
        tracker.log({"loss": step}, step)
        tracker.samples([{"text": str(step)}], step)
    tracker.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    resumed = JsonlTracker(tmp_path, 2)
    resumed.log({"loss": 30}, 3)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path / "metrics.jsonl")] == [
        (1, 1),
        (2, 2),
        (3, 30),
    ]
    assert [row["step"] for row in rows(tmp_path / "samples.jsonl")] == [1, 2]


def test_starting_anew_drops_all_rows(tmp_path):
    JsonlTracker(tmp_path, None).log({"loss": 1}, 1)
    JsonlTracker(tmp_path, None)
    assert rows(tmp_path / "metrics.jsonl") == []


def test_what_a_resumed_stage_measures_again_is_no_new_row(tmp_path):
    for resume_step in (None, 4, 4):
        tracker = JsonlTracker(tmp_path, resume_step)
        for step, name in ((0, "eval_loss"), (4, "loss"), (4, "eval_loss"), (4, "eval_loss"), (5, "loss")):
            if resume_step is None or step == 0 or name == "eval_loss":
                tracker.log({name: 1.0}, step)
        for step, when in ((0, "before"), (4, "after"), (5, "after")):
            tracker.samples([{"when": when, "text": "é"}], step)
        tracker.close()
    logged = [(row["step"], *(row.keys() - {"step", "time"})) for row in rows(tmp_path / "metrics.jsonl")]
    assert logged == [(0, "eval_loss"), (4, "loss"), (4, "eval_loss")]
    assert [row["step"] for row in rows(tmp_path / "samples.jsonl")] == [0, 4, 5]


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


def stage(folder, resume_step=None) -> TrackedStage:
    return TrackedStage(folder=folder, stage="ppo", group="run", config={"seed": 1}, resume_step=resume_step)


def test_without_key_and_terminal_wandb_logs_offline_and_says_how_to_sync(tmp_path, no_key, capfd):
    tracker = open_tracker(TrackingConfig(wandb="auto"), stage(tmp_path))
    tracker.log({"objective/kl": 1.0}, 1)
    tracker.samples([{"prompt": "a", "score": 1.0}], 1)
    tracker.close()
    (offline,) = (tmp_path / "wandb").glob("offline-run-*")
    assert f"[WB01] W&B logs offline to {offline}; later: wandb sync {offline}" in capfd.readouterr().out
    first = json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert offline.name.endswith(first)
    assert rows(tmp_path / "metrics.jsonl")[0]["objective/kl"] == 1.0


def test_a_failing_wandb_is_told_once_and_training_goes_on(tmp_path, monkeypatch, capsys):
    import wandb

    def refuse(**settings):
        raise RuntimeError("no network")

    monkeypatch.setattr(wandb, "init", refuse)
    tracker = open_tracker(TrackingConfig(wandb="online"), stage(tmp_path))
    for step in (1, 2):
        tracker.log({"loss": 1.0}, step)
    tracker.close()
    assert capsys.readouterr().out == (
        "[WB02] W&B stopped (RuntimeError: no network); training goes on and metrics.jsonl has every row\n"
    )
    assert len(rows(tmp_path / "metrics.jsonl")) == 2


class RunThatBreaks:
    """A W&B run whose connection is lost after the first row."""

    def __init__(self):
        self.logged = []

    def define_metric(self, *names, **settings): ...

    def log(self, row):
        if self.logged:
            raise ConnectionError("lost")
        self.logged.append(row)


def test_the_id_of_the_wandb_run_is_kept_when_a_stage_resumes(tmp_path, monkeypatch):
    import wandb

    started = []
    monkeypatch.setattr(wandb, "init", lambda **settings: started.append(settings) or RunThatBreaks())
    for resume_step in (None, 5, None):
        tracker = WandbTracker(TrackingConfig(wandb="online", project="p"), stage(tmp_path, resume_step))
        tracker.log({"loss": 1.0}, 1)
        tracker.log({"loss": 1.0}, 2)
    ids = [settings["id"] for settings in started]
    assert ids[0] == ids[1] != ids[2]
    assert {(s["project"], s["group"], s["name"], s["resume"]) for s in started} == {("p", "run", "run/ppo", "allow")}
