"""A scoring server that fails one of two ranks: both save the same state, end, and go on to the same bits."""

import json
from pathlib import Path

import pytest

from pipeline.config_loading import load_config
from pipeline.rundir import RunDir
from tests.distributed.ranks import on_two_ranks
from tests.scoring_servers import answer, serving
from tests.toy_models import save_toy, write_rows

CONFIG = """\
run: {{name: remote, root: {root}}}
model: {{path: {base}}}
data: {{prompts: {{train: {data}}}}}
sft: {{enabled: false}}
reward_model: {{enabled: false}}
reward: [{{remote: {{url: "{url}", retries: 0}}}}]
ppo: {{steps: 4, rollout_batch_size: 4, minibatch_size: 4, microbatch_size: 2, ppo_epochs: 1, max_prompt_tokens: 12,
  max_new_tokens: 5, learning_rate: 1e-3, checkpoint_every: 0, max_empty_fraction: 1.0, score_normalisation: running}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    save_toy(folder / "base")
    write_rows(folder / "prompts.jsonl", [{"prompt": s} for s in ("the film", "a plot", "my seat", "so bad")])
    return folder


def run_of(place: Path, name: str, url: str) -> RunDir:
    file = place / f"{name}.yaml"
    places = {"root": place / name, "base": place / "base", "data": place / "prompts.jsonl"}
    file.write_text(CONFIG.format(url=url, **places))
    return RunDir.create(load_config(file), ["rlhf", "run", str(file)])


def test_a_failure_on_one_rank_is_that_of_both_and_both_go_on(place: Path):
    down = answer({"detail": "loading"}, status=503)
    with serving() as good, serving(*[answer()] * 4, down, answer()) as bad:  # two requests per iteration
        whole, cut = run_of(place, "whole", good.address), run_of(place, "cut", bad.address)
        log = place / "log.txt"
        on_two_ranks("ppo", [whole.path, cut.path, cut.path], log)
    told = log.read_text()
    assert [line.split()[1:] for line in told.splitlines() if line.startswith("CASE ")] == [
        ["whole", "0"],
        ["cut", "3"],
        ["cut", "0"],
    ], told
    assert told.count(f"[REW06] remote: {bad.address} was asked once without an answer") == 1
    assert "ppo: the state after step 2 is saved" in told
    assert f"resuming from {cut.path}/ppo/checkpoints/step-000002" in told
    hashes = [json.loads((run.stage("ppo").path / "stage.json").read_text())["final_hash"] for run in (whole, cut)]
    assert hashes[0] == hashes[1]
    assert len(bad.bodies) == 4 + 2 + 4, "each rank asks about its own rows, once"
    assert all(len(body["completions"]) == 2 for body in bad.bodies)
