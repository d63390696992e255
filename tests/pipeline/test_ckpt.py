"""`rlhf ckpt` on a run folder with real checkpoints; no model is loaded."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.checkpoints import CheckpointManager
from pipeline.cli import app
from pipeline.config_loading import load_config
from pipeline.lineage import inputs_of
from pipeline.rundir import RunDir


@pytest.fixture
def run(workplace) -> RunDir:
    """SFT was interrupted after steps 10, 20 and 30; the newest checkpoint is damaged."""
    run = RunDir.create(load_config("config.yaml"), ["rlhf"])
    identity = inputs_of(run, run.config(), "sft").identity
    run.stage("sft").write_manifest({"stage": "sft", "status": "running", "identity": identity.plain()})
    checkpoints = CheckpointManager(run.stage("sft").checkpoints, 3, identity)
    for step in (10, 20, 30):
        checkpoints.save(step, lambda folder: (folder / "state").write_text("state"))
    (run.stage("sft").checkpoints / "step-000030" / "state").write_text("stale")
    return run


def ckpt(*arguments: str) -> tuple[int, list[str]]:
    done = CliRunner().invoke(app, ["ckpt", *arguments], env={"COLUMNS": "200"})
    return done.exit_code, done.output.splitlines()


def test_ls_says_which_one_a_resume_takes_and_why_not_the_newest(run):
    code, lines = ckpt("ls", "runs/small")
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert code == 0
    assert [(row[1], row[4]) for row in rows if row[1]] == [
        ("30", "runs/small/sft/checkpoints/step-000030/state: sha256 differs from manifest"),
        ("20", "complete, a resume takes it"),
        ("10", "complete"),
    ]


def test_verify_names_the_damaged_file_and_ends_with_the_code_of_storage(run):
    damaged = "damaged: runs/small/sft/checkpoints/step-000030/state: sha256 differs from manifest"
    assert ckpt("verify", "runs/small") == (5, [damaged, "runs/small: 3 checkpoints and final models, 1 damages found"])
    (run.stage("sft").checkpoints / "step-000030" / "state").write_text("state")
    assert ckpt("verify", "runs/small") == (0, ["runs/small: 3 checkpoints and final models, 0 damages found"])


def test_verify_reads_the_files_of_final_models(run, finish):
    finish(run, "reward_model")
    (run.stage("reward_model").final / "config.json").write_text("[]")
    assert (
        "damaged: runs/small/reward_model/final: files differ from those that stage reward_model wrote"
        in ckpt("verify", "runs/small", "--stage", "reward_model")[1]
    )


def test_diff_shows_what_the_config_would_change(run):
    run.describe(load_config("config.yaml", ["sft.learning_rate=1e-3", "seed=2"]), ["rlhf"])
    code, lines = ckpt("diff", "runs/small", "sft")
    assert code == 0
    assert lines == [
        "runs/small/sft/checkpoints/step-000030 -> runs/small/config.yaml: 2 changes",
        "    seed: 0 -> 2  (it orders rows and random draws, part of which are used up; cannot be allowed)",
        "    sft.learning_rate: 2e-05 -> 0.001",
    ]


def test_diff_compares_two_checkpoints(run):
    assert ckpt("diff", "runs/small", "sft", "--between", "10", "20") == (
        0,
        ["runs/small/sft/checkpoints/step-000010 -> step-000020: 0 changes"],
    )


def test_prune_keeps_the_newest_complete_one_and_counts_what_it_frees(run):
    folder = run.stage("sft").checkpoints
    size = {step: sum(p.stat().st_size for p in (folder / f"step-0000{step}").iterdir()) for step in (10, 30)}
    would = ckpt("prune", "runs/small", "--dry-run")[1]
    assert would[-1] == f"runs/small: {size[10] + size[30]:,} bytes would be freed"
    assert len(list(folder.iterdir())) == 3
    assert ckpt("prune", "runs/small")[1] == [
        f"removed runs/small/sft/checkpoints/step-000030: {size[30]:,} bytes",
        f"removed runs/small/sft/checkpoints/step-000010: {size[10]:,} bytes",
        f"runs/small: {size[10] + size[30]:,} bytes freed",
    ]
    assert [path.name for path in folder.iterdir()] == ["step-000020"]


def test_prune_removes_nothing_where_nothing_is_complete(run):
    for path in Path("runs/small/sft/checkpoints").glob("*/state"):
        path.unlink()
    assert ckpt("prune", "runs/small") == (0, ["runs/small: 0 bytes freed"])
