"""A run stands for its last finished policy, a model's folder for itself; names of adapters are checked first."""

from pathlib import Path

import pytest

from pipeline.config_loading import load_config
from pipeline.policies import final_of, named_adapters
from pipeline.rundir import RunDir
from stages.base import InputError


@pytest.fixture
def run(workplace) -> RunDir:
    return RunDir.create(load_config("config.yaml"), ["rlhf"])


def refusal(call, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    return str(caught.value)


def test_a_run_stands_for_ppo_once_that_is_finished_and_for_sft_before(run, finish):
    finish(run, "sft")
    finish(run, "reward_model")
    assert final_of(run.path) == Path("runs/small/sft/final")
    finish(run, "ppo")
    assert final_of(run.path) == Path("runs/small/ppo/final")


def test_a_named_stage_is_taken_whatever_came_after_it(run, finish):
    for stage in ("sft", "reward_model", "ppo"):
        finish(run, stage)
    assert final_of(run.path, "reward_model") == Path("runs/small/reward_model/final")
    assert final_of(run.path, "sft") == Path("runs/small/sft/final")


def test_an_interrupted_ppo_does_not_stand_for_the_run(run, finish):
    finish(run, "sft")
    finish(run, "ppo", status="running")
    assert final_of(run.path) == Path("runs/small/sft/final")


def test_an_unfinished_stage_is_refused_with_the_command_that_makes_it(run, finish):
    finish(run, "ppo", status="failed")
    found = refusal(final_of, run.path, "ppo")
    assert found.startswith("[RUN04] runs/small has no finished ppo; found ppo failed; fix: make it: ")
    assert found.endswith(" -m pipeline.cli run runs/small/config.yaml --from ppo")


def test_a_run_without_any_policy_says_what_it_has(run):
    found = refusal(final_of, run.path)
    assert found.startswith("[RUN04] runs/small has no finished ppo or sft; found ppo not started, sft not started; ")
    assert found.endswith(" -m pipeline.cli run runs/small/config.yaml")


@pytest.mark.parametrize("stage", ["evaluation", "sfft"])
def test_a_stage_that_leaves_no_model_is_refused(run, stage):
    expected = f"[RUN03] no stage '{stage}'; found sft, reward_model, ppo; fix: name one of these"
    assert refusal(final_of, run.path, stage) == expected


@pytest.mark.parametrize("file", ["config.json", "adapter_config.json"])
def test_a_folder_of_weights_or_of_an_adapter_is_itself(tmp_path, file):
    (tmp_path / file).write_text("{}")
    assert final_of(tmp_path) == tmp_path
    assert refusal(final_of, tmp_path, "sft").startswith(f"[RUN04] {tmp_path} is a model, it has no stages")


def test_a_gguf_file_is_itself():
    assert final_of(Path("models/small.gguf")) == Path("models/small.gguf")


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_that_is_neither_is_refused(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    assert refusal(final_of, Path(folder)).startswith(f"[PATH01] {folder} is neither a run (config.yaml) nor a model")


def test_adapters_are_named_and_a_run_among_them_means_its_policy(run, finish):
    finish(run, "sft")
    assert named_adapters(["a=base", "b.2=runs/small"]) == {"a": Path("base"), "b.2": Path("runs/small/sft/final")}
    assert named_adapters([]) == {}


@pytest.mark.parametrize("argument", ["base", "=base", "a=", "", "two words=base", "a/b=base"])
def test_an_adapter_without_name_or_path_is_refused(run, argument):
    assert refusal(named_adapters, [argument]).startswith(f"[CHAT01] --adapter {argument!r} is not name=path; fix: ")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(["a=base", "a=base"], "given twice"), (["base=base"], "taken"), (["default=base"], "taken")],
)
def test_a_name_means_one_adapter(run, arguments, why):
    found = refusal(named_adapters, arguments)
    assert found.startswith("[CHAT01] --adapter ") and f" is {why}; fix: give it another name" in found
