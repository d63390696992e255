"""The same config on two hosts and on one with two processes: what is learned is the same."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.multinode.hosts import Hosts

ROOT = Path(__file__).parents[2]
HOSTS = 2
STEPS = ("sft.max_steps=6", "sft.checkpoint_every=0", "--only", "sft")


def learned(run: str) -> dict[str, object]:
    manifest = json.loads(Path(f"runs/{run}/sft/stage.json").read_text())
    assert manifest["status"] == "finished"
    return {name: manifest[name] for name in ("headline", "final_hash")}


@pytest.mark.slow
def test_two_hosts_learn_what_two_processes_of_one_host_do(hosts: Hosts, folder: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("scripts", "configs"):
        shutil.copytree(ROOT / name, name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = [sys.executable, "-m", "pipeline.cli", "run", "configs/tiny.yaml", *STEPS]
    alone = subprocess.run([*command, "run.name=one", "launch.ranks=2"], capture_output=True, text=True, env=os.environ)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    done = hosts.run(0, *command, "run.name=two", "--nodes", "hosts", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("2 nodes x 1 = 2 ranks, fp32\n")
    assert "[rank 1 node1] " in Path("runs/two/sft/log.txt").read_text()
    assert learned("two") == learned("one")
    assert not any(hosts.processes(i) for i in range(2))
