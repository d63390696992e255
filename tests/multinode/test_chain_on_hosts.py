"""The same config on two hosts and on one with two processes: what is learned is the same."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.multinode.hosts import Hosts

ROOT = Path(__file__).parents[2]
HOSTS = 2
RUN = (sys.executable, "-m", "pipeline.cli", "run", "configs/tiny.yaml")
STAGES = ("sft", "reward_model", "ppo")
CHAIN = ("sft.max_steps=4", "reward_model.max_steps=4", "ppo.steps=2", "deepspeed.zero_stage=2")
PPO = (
    *("sft.enabled=false", "reward_model.enabled=false", "reward=[{function: scripts/prepare_tiny.py:good}]"),
    *("evaluation.judge=null", "ppo.steps=2", "ppo.max_empty_fraction=1", "--only", "ppo"),
)


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that all hosts share, with the tiny config and what it names."""
    for name in ("scripts", "configs"):
        shutil.copytree(ROOT / name, name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


def learned(run: str, stage: str) -> dict[str, Any]:
    manifest = json.loads(Path(f"runs/{run}/{stage}/stage.json").read_text())
    assert manifest["status"] == "finished"
    return {name: manifest[name] for name in ("headline", "final_hash")}


def results(run: str) -> dict[str, Any]:
    """results.json without what the run has cost."""
    found = json.loads(Path(f"runs/{run}/results.json").read_text())
    return {name: found[name] for name in ("models", "reward_model")}


def run_on_both(hosts: Hosts, *settings: str) -> None:
    """The run `one` on one host with two processes, the run `two` on two hosts with one each."""
    alone = subprocess.run(
        [*RUN, *settings, "run.name=one", "launch.ranks=2"], capture_output=True, text=True, env=os.environ
    )
    assert alone.returncode == 0, alone.stdout + alone.stderr
    done = hosts.run(0, *RUN, *settings, "run.name=two", "--nodes", "hosts", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("2 nodes x 1 = 2 ranks, ")
    assert not any(hosts.processes(i) for i in range(2))


@pytest.mark.slow
def test_the_chain_on_two_hosts_learns_what_it_does_on_two_processes_of_one_host(hosts: Hosts, place: Path):
    run_on_both(hosts, *CHAIN)
    for stage in STAGES:
        assert learned("two", stage) == learned("one", stage)
        assert "[rank 1 node1] " in Path(f"runs/two/{stage}/log.txt").read_text()
    assert results("two") == results("one")


def test_ppo_on_two_hosts_learns_what_it_does_on_two_processes_of_one_host(hosts: Hosts, place: Path):
    run_on_both(hosts, *PPO)
    assert learned("two", "ppo") == learned("one", "ppo")
    assert learned("two", "ppo")["headline"]["steps"] == 2
