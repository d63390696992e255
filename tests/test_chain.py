"""The real command on the tiny config: the chain learns, skips what is done, repeats its bits, survives a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

REPOSITORY = Path(__file__).resolve().parent.parent
STEPS = ("sft", "reward_model", "ppo", "evaluation")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(root: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", "run", "configs/tiny.yaml", f"run.root={root}", *more]


def rlhf(root: Path, *more: str) -> str:
    """What `rlhf run configs/tiny.yaml` prints; it must succeed."""
    return call(command(root, *more)[1:])


def call(arguments: list[str]) -> str:
    """What Python prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def manifest(run: Path, stage: str) -> dict:
    return json.loads((run / stage / "stage.json").read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    rlhf(folder)
    return folder


@pytest.fixture(scope="module")
def run(root: Path) -> Path:
    return root / "tiny"


def test_the_chain_learns_what_the_judge_wants(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    sft, ppo = results["models"]["sft"], results["models"]["ppo"]
    assert results["reward_model"]["accuracy"] >= 0.9
    assert ppo["judge"]["value"] >= sft["judge"]["value"] + 0.4
    assert ppo["score"]["value"] >= sft["score"]["value"] + 1.0
    assert sft["kl"]["value"] == 0.0
    assert 0.5 <= ppo["kl"]["value"] <= 12


def test_ppo_starts_exactly_at_the_reference(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "ppo" / "metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if row["step"] == 1 and "objective/kl" in row)
    assert first["objective/kl"] == 0.0
    assert first["policy/ratio_first"] <= 1e-5
    for row in (row for row in rows if "objective/kl" in row):
        expected = row["objective/score"] - row["objective/kl_coef"] * row["objective/kl"]
        assert row["objective/reward"] == pytest.approx(expected, abs=1e-4)


def test_every_final_loads_with_plain_transformers(run: Path) -> None:
    for stage in ("sft", "ppo"):
        model = AutoModelForCausalLM.from_pretrained(run / stage / "final")
        tokenizer = AutoTokenizer.from_pretrained(run / stage / "final")
        ids = tokenizer("dako", return_tensors="pt").input_ids
        assert model.generate(ids, max_new_tokens=4).shape[1] > ids.shape[1]
    assert AutoModelForSequenceClassification.from_pretrained(run / "reward_model" / "final").config.num_labels == 1


def test_the_report_shows_all_three_models(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert all(name in page for name in ("base", "SFT", "PPO"))
    assert "<svg" in page


def test_a_second_run_skips_everything_and_a_forced_stage_repeats_its_bits(root: Path, run: Path) -> None:
    before = {stage: (run / stage / "stage.json").read_text() for stage in STEPS}
    assert rlhf(root).count("finished and unchanged, skipped") == 4
    assert {stage: (run / stage / "stage.json").read_text() for stage in STEPS} == before

    printed = rlhf(root, "--force", "reward_model")
    assert "[reward_model] starts" in printed
    assert "[ppo] finished and unchanged, skipped" in printed, "the same seed must give the same reward model"
    assert manifest(run, "reward_model")["final_hash"] == json.loads(before["reward_model"])["final_hash"]


def test_the_reward_model_is_measured_again_to_the_numbers_of_its_stage_and_on_other_pairs(run: Path) -> None:
    file, evaluation = run / "reward_model" / "report.json", ["-m", "pipeline.cli", "eval", "reward_model", str(run)]
    of_stage = json.loads(file.read_text())
    assert of_stage["accuracy"]["value"] == json.loads((run / "results.json").read_text())["reward_model"]["accuracy"]
    assert of_stage["scores"]["sft_samples"]["n"] > 1
    file.unlink()
    printed = call(evaluation)
    assert json.loads(file.read_text()) == of_stage
    assert f"{of_stage['accuracy']['value']:.3f} (95 % interval" in printed
    assert "accuracy by" in printed
    training = "data/tiny/preferences.train.jsonl"
    assert training in call([*evaluation, f"data.preferences.eval={training}"])
    assert json.loads(file.read_text())["accuracy"]["n"] == 1536
    assert "Accuracy by length difference" in (run / "report.html").read_text()
    file.write_text(json.dumps(of_stage))


def test_a_reward_model_below_the_demand_stops_the_command_before_ppo_and_is_kept(root: Path, run: Path) -> None:
    weak = root / "weak"
    for stage in ("sft", "reward_model"):
        shutil.copytree(run / stage, weak / stage)
    demand = command(root, "run.name=weak", "reward_model.minimum_accuracy=0.9999")
    done = subprocess.run(demand, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 2
    assert done.stderr.startswith(f"[RM06] {weak}/reward_model: held-out accuracy 0.9")
    assert "so PPO does not start; the reward model and its report.json are kept" in done.stderr
    assert not (weak / "ppo").exists()
    assert manifest(weak, "reward_model") == manifest(run, "reward_model")
    assert "How good the reward model is" in (weak / "report.html").read_text()


def test_a_killed_stage_goes_on_from_its_checkpoint_to_the_same_bits(root: Path, run: Path) -> None:
    killed = root / "killed"
    for stage in ("sft", "reward_model"):
        shutil.copytree(run / stage, killed / stage)
    more = ("run.name=killed", "ppo.checkpoint_every=2", "--only", "ppo")
    process = subprocess.Popen(command(root, *more), cwd=REPOSITORY, env=ENVIRONMENT, start_new_session=True)
    checkpoint = killed / "ppo" / "checkpoints" / "step-000004"
    deadline = time.monotonic() + 200
    while not checkpoint.is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert manifest(killed, "ppo")["status"] == "running"

    printed = rlhf(root, *more)
    assert "resuming from" in printed
    assert manifest(killed, "ppo")["final_hash"] == manifest(run, "ppo")["final_hash"]
    steps = [json.loads(line)["step"] for line in (killed / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
