"""What `rlhf run` says of how it would start, and that saying it starts nothing."""

import os
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.config_loading import load_config
from pipeline.starting import headline, opening


def test_printing_the_commands_runs_nothing(workplace: Path, capsys: pytest.CaptureFixture[str]):
    (workplace / "hosts").write_text("gpu01 slots=2\ngpu02 slots=2\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "config.yaml", "--nodes", "hosts", "--from", "reward_model", "--print-commands"])
    assert not ended.value.code
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("2 nodes x 2 = 4 ranks, ")
    assert [line.partition(" ")[0] for line in lines] == ["[reward_model]", "[ppo]", "[evaluation]"]
    assert lines[1].endswith(f" {workplace}/runs/small/.launch/ppo.json")
    assert " --hostfile " in lines[1]
    assert lines[2].endswith(" -m pipeline.cli stage evaluation runs/small")
    assert not (workplace / "runs").exists()


def test_one_process_starts_as_ever(workplace: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main(["run", "config.yaml", "--only", "sft", "--print-commands"])
    assert capsys.readouterr().out.splitlines()[-1].endswith(" -m pipeline.cli stage sft runs/small")
    assert list(opening(load_config("config.yaml"))) == []


def test_the_first_line_says_what_is_split_over_how_many(workplace: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "environ", {"HF_TOKEN": "hf_secret", "HOME": "/root", "RLHF_DEBUG": "1"})
    overrides = ("launch.ranks=2", "deepspeed.zero_stage=2", "model.compute=bfloat16")
    config = load_config("config.yaml", overrides)
    assert headline(config) == "1 node x 2 = 2 ranks, ZeRO-2, bf16"
    assert list(opening(config)) == [headline(config), "environment of the ranks: HF_TOKEN"]
