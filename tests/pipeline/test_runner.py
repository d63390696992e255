"""The walk through the chain, with real processes whose stages only write a file."""

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import runner
from pipeline.config_loading import load_config
from pipeline.locks import chain_lock
from pipeline.rundir import RunDir
from pipeline.runner import run_chain
from pipeline.selection import Selection
from stages.base import InputError

STAGE_PROGRAM = """
import os
import sys
from pathlib import Path

from pipeline import cli, stage_process
from stages.base import Diverged, InputError, StageResult

def train(config, inputs, context):
    name = context.folder.name
    start = context.checkpoints.latest()
    print(f"{name} from {start[0] if start else 0}")
    for step in range(start[0] if start else 0, 3):
        context.tracker.log({f"{name}/loss": 1.0 / (step + 1)}, step + 1)
        context.checkpoints.save(step + 1, lambda folder: (folder / "state").write_text(str(step)))
        if os.path.exists(f"fail-{name}") and step == 1:
            raise {"input": InputError("DATA01", "bad row", fix="mend it"), "nan": Diverged("loss is nan"),
                   "disk": OSError(28, "No space left on device")}[Path(f"fail-{name}").read_text()]
    (context.folder / "final").mkdir()
    (context.folder / "final" / "model").write_text(f"{name} {config.seed} {sorted(inputs.parents)}")
    return StageResult(context.folder / "final", False, {"accuracy": 0.9})

def evaluate(config, inputs, context):
    return {name: {"score": {"value": 1.5, "n": 4, "standard_error": 0.1}} for name in ("base", "sft", "ppo")}

stage_process.TRAINING = {name: train for name in ("sft", "reward_model", "ppo")}
stage_process.run_evaluation = evaluate
cli.main(["stage", *sys.argv[1:]])
"""


class Chain:
    """Runs the chain and keeps what it printed."""

    def __init__(self):
        self.run = RunDir(Path("runs/small"))
        self.printed = ""

    def __call__(self, *overrides: str, **selection) -> int:
        console = Console(file=io.StringIO(), width=200)
        config = load_config("config.yaml", overrides)
        try:
            return run_chain(config, Selection(**selection), ["rlhf", "run", "config.yaml"], console)
        finally:
            self.printed = console.file.getvalue()

    @property
    def started(self) -> list[str]:
        """Steps that the last walk started a process for."""
        return [
            line[1:].partition("]")[0]
            for line in self.printed.splitlines()
            if " starts: " in line or " resumes: " in line
        ]


@pytest.fixture
def chain(workplace, monkeypatch) -> Chain:
    program = workplace / "stage_program.py"
    program.write_text(STAGE_PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(Path(runner.__file__).parents[1]))
    monkeypatch.setattr(runner, "stage_command", lambda stage, run: [sys.executable, str(program), stage, str(run)])
    return Chain()


def steps_logged(run: RunDir, stage: str) -> list[int]:
    return [json.loads(line)["step"] for line in (run.stage(stage).path / "metrics.jsonl").read_text().splitlines()]


def test_the_chain_runs_every_stage_and_leaves_results_and_report(chain):
    assert chain() == 0
    assert chain.started == ["sft", "reward_model", "ppo", "evaluation"]
    assert (chain.run.stage("ppo").final / "model").read_text() == "ppo 0 ['reward_model', 'sft']"
    results = json.loads(chain.run.results_file.read_text())
    assert results["models"]["ppo"]["score"] == {"value": 1.5, "n": 4, "standard_error": 0.1}
    assert results["reward_model"] == {"accuracy": 0.9}
    assert list(results["stages"]) == ["sft", "reward_model", "ppo", "evaluation"]
    assert results["stages"]["sft"]["peak_bytes"] > 1e6
    assert (chain.run.path / "report.html").is_file()
    about = chain.run.about
    assert (about["name"], about["command"]) == ("small", ["rlhf", "run", "config.yaml"])


def test_the_manifest_says_what_a_stage_was_made_from(chain):
    chain(only="sft")
    chain(only="reward_model")
    manifest = chain.run.stage("reward_model").manifest
    parent = chain.run.stage("sft").manifest
    assert manifest["status"] == "finished"
    assert manifest["parents"] == {"sft": {"path": "runs/small/sft/final", "final_hash": parent["final_hash"]}}
    assert set(manifest["data"]) == {"preferences.jsonl", "demonstrations.jsonl"}
    assert manifest["config"]["max_length"] == 8
    assert {"format", "fingerprint", "base", "versions", "git", "started", "seconds", "headline"} <= set(manifest)


def test_a_reward_model_below_the_demand_stops_the_chain_and_a_lower_demand_goes_on_from_there(chain):
    pair = {"prompt": "the book", "chosen": " is great", "rejected": " is bad"}
    Path("held_out.jsonl").write_text(json.dumps(pair) + "\n")
    held_out = "data.preferences.eval=held_out.jsonl"
    demand = "[RM06] runs/small/reward_model: held-out accuracy 0.900 is below reward_model.minimum_accuracy 0.95"
    for started in (["sft", "reward_model"], []):  # a second time nothing is trained again
        with pytest.raises(InputError) as caught:
            chain(held_out, "reward_model.minimum_accuracy=0.95")
        assert str(caught.value).startswith(demand)
        assert chain.started == started
    for selection in ({"first": "ppo"}, {"only": "reward_model"}):
        with pytest.raises(InputError, match="RM06"):
            chain(held_out, "reward_model.minimum_accuracy=0.95", **selection)
    assert chain.run.stage("reward_model").finished
    assert not chain.run.stage("ppo").manifest
    assert (chain.run.path / "report.html").is_file()
    assert chain(held_out, "reward_model.minimum_accuracy=0.9") == 0
    assert chain.started == ["ppo", "evaluation"]


def test_a_demand_without_held_out_pairs_is_refused(chain):
    with pytest.raises(InputError, match="minimum_accuracy is about held-out pairs; set data.preferences.eval"):
        chain("reward_model.minimum_accuracy=0.9")


def test_a_second_run_skips_everything(chain):
    chain()
    assert chain() == 0
    assert chain.started == []
    assert chain.printed.count("finished and unchanged, skipped") == 4


def test_a_changed_stage_and_those_that_build_on_it_run_anew(chain):
    chain()
    chain("reward_model.learning_rate=1e-3")
    assert chain.started == ["reward_model"]  # the same model came out, so PPO is up to date
    chain("sft.learning_rate=1e-3", "seed=7")
    assert chain.started == ["sft", "reward_model", "ppo", "evaluation"]


def test_what_does_not_change_the_result_does_not_run_a_stage_anew(chain):
    chain()
    chain("ppo.checkpoint_every=1", "sft.keep_checkpoints=5")
    assert chain.started == []


def test_changed_data_runs_the_stage_anew(chain):
    chain()
    with open("demonstrations.jsonl", "a") as file:
        file.write('{"prompt": "a", "completion": " b"}\n')
    chain()
    assert chain.started[0] == "sft"


def test_forced_stages_start_from_nothing(chain):
    chain()
    chain(force=("sft",))
    assert chain.started == ["sft"]
    assert chain.run.stage("sft").log.read_text().splitlines() == ["sft from 0"]
    chain(force=("all",))
    assert chain.started == ["sft", "reward_model", "ppo", "evaluation"]


@pytest.mark.parametrize("reason, code", [("input", 2), ("nan", 4), ("disk", 5)])
def test_a_failure_stops_the_chain_and_says_how_to_go_on(chain, reason, code):
    Path("fail-reward_model").write_text(reason)
    assert chain() == code
    assert chain.started == ["sft", "reward_model"]
    assert f"[reward_model] failed with exit code {code}. The end of its log:" in chain.printed
    assert "Traceback" not in chain.printed
    assert "The whole log: runs/small/reward_model/log.txt" in chain.printed
    again = f"{sys.executable} -m pipeline.cli run runs/small/config.yaml --from reward_model"
    assert chain.printed.rstrip().endswith(again)
    assert chain.run.stage("reward_model").manifest["status"] == "failed"


def test_a_failed_stage_resumes_from_its_checkpoint(chain):
    Path("fail-ppo").write_text("nan")
    chain()
    Path("fail-ppo").unlink()
    assert chain(first="ppo") == 0
    assert chain.started == ["ppo", "evaluation"]
    assert chain.run.stage("ppo").log.read_text().splitlines() == [
        "ppo from 0",
        "Diverged: loss is nan",
        "ppo from 2",
    ]
    assert steps_logged(chain.run, "ppo") == [1, 2, 3]


def test_a_stage_that_changed_since_its_checkpoint_goes_on_only_when_that_is_allowed(chain):
    Path("fail-sft").write_text("nan")
    chain()
    with pytest.raises(InputError) as refused:
        chain("sft.learning_rate=1e-3")
    assert str(refused.value) == (
        "[CKPT04] runs/small/sft changed since step-000002 was saved: sft.learning_rate: 2e-05 -> 0.001; fix: "
        "--allow sft.learning_rate goes on from it with the new value, --force sft starts anew and drops the checkpoint"
    )
    assert chain.run.stage("sft").log.read_text().splitlines() == ["sft from 0", "Diverged: loss is nan"]
    Path("fail-sft").unlink()
    assert chain("sft.learning_rate=1e-3", only="sft", allow=("sft.learning_rate",)) == 0
    log = chain.run.stage("sft").log.read_text()
    told = "sft changed since step-000002 and allowed:\n    sft.learning_rate: 2e-05 -> 0.001\nsft from 2\n"
    assert log.endswith(told)
    assert chain.run.stage("sft").manifest["allowed"] == ["sft.learning_rate"]


def test_a_finished_stage_that_changed_says_what_changed(chain):
    chain(only="sft")
    with open("demonstrations.jsonl", "a") as file:
        file.write('{"prompt": "a", "completion": " b"}\n')
    chain("sft.learning_rate=1e-3", only="sft")
    assert "[sft] changed since it finished; it starts anew:\n    data.demonstrations.train: " in chain.printed
    assert " (demonstrations.jsonl)\n    sft.learning_rate: 2e-05 -> 0.001\n[sft] starts: " in chain.printed


def test_a_stage_whose_parent_is_unfinished_is_refused(chain):
    with pytest.raises(InputError, match=r"\[STAGE08\] ppo needs stage sft .* not started.*--from sft"):
        chain(only="ppo")


def test_a_parent_that_was_altered_is_refused(chain):
    chain(only="sft")
    final = chain.run.stage("sft").final / "model"
    final.write_text("another")
    assert chain(only="reward_model") == 2
    assert "[STAGE06] runs/small/sft/final: files differ" in chain.printed


def test_an_unknown_or_disabled_step_is_refused(chain):
    with pytest.raises(InputError, match=r"\[RUN03\] no step 'rm' in this run; found sft, reward_model, ppo"):
        chain(only="rm")
    with pytest.raises(InputError, match=r"\[RUN03\] no step 'sft'.*fix: set sft.enabled=true"):
        chain("sft.enabled=false", first="sft")


def test_a_second_process_on_the_same_run_is_refused(chain):
    chain(only="sft")
    with (
        chain_lock(chain.run.path),
        pytest.raises(InputError, match=r"\[RUN01\] runs/small is in use by process \d+"),
    ):
        chain(only="sft")


PREPARE = "\nprepare: {script: prepare.py, arguments: [base2], creates: [base2]}\n"


def test_data_is_prepared_once_when_it_is_missing(chain):
    Path("config.yaml").write_text(Path("config.yaml").read_text() + PREPARE)
    Path("prepare.py").write_text("import os, sys\nos.mkdir(sys.argv[1])\n")
    chain(only="sft")
    assert chain.started == ["prepare", "sft"]
    chain(only="sft")
    assert chain.started == []


def test_a_preparation_that_fails_is_told_like_a_stage(chain):
    Path("config.yaml").write_text(Path("config.yaml").read_text() + PREPARE)
    Path("prepare.py").write_text("raise SystemExit('no space on the shelf')\n")
    assert chain(only="sft") == 1
    assert "[prepare] failed with exit code 1" in chain.printed
    assert "    no space on the shelf" in chain.printed
    assert "runs/small/prepare.log" in chain.printed
