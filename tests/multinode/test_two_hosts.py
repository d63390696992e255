"""A job over two real hosts: it starts on both, and whatever happens ends on both."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.multinode.hosts import Hosts, wait_for

HOSTS = 2
DRIVER = """
import sys
from pathlib import Path
from pipeline.launch_config import LaunchConfig
from pipeline.launchers import world_of
from pipeline.ranked_stage import RankedStage, run_ranks
from pipeline.signals import Relay
from pipeline.watchdog import Watch
launch = LaunchConfig(launcher=sys.argv[1], hostfile="hosts", lost_after_s=8)
stage = RankedStage("sft", [sys.executable, "stage.py"], Path(), launch, world_of(launch))
with Relay().installed() as relay, Path("log").open("wb") as log:
    sys.exit(run_ranks(stage, log, relay, Watch("sft", Path(), None), print))
"""
STAGE = """
import os, sys, time
from pathlib import Path
from pipeline.signals import end_with_parent, listening
from stages.stopping import StopRequest
end_with_parent()
stop = StopRequest()
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GLOO_SOCKET_IFNAME", "MASTER_ADDR", "WANDB_API_KEY")
with listening(stop):
    Path(f"rank-{os.environ['RANK']}").write_text(" ".join([os.uname().nodename, *(os.environ[n] for n in names)]))
    while stop.signal is None and not Path("enough").exists():
        time.sleep(0.05)
sys.exit(128 + stop.signal if stop.signal else 0)
"""
SECRET = "a0b1c2d3e4f5"


@contextmanager
def running(hosts: Hosts, stage: str = STAGE) -> Iterator[subprocess.Popen]:
    """The job over pdsh, once both ranks run."""
    with started(hosts, "deepspeed", stage) as job:
        wait_for(lambda: len(list(Path().glob("rank-*"))) == 2 or job.poll() is not None, 300)
        yield job


@contextmanager
def started(hosts: Hosts, launcher: str, stage: str = STAGE) -> Iterator[subprocess.Popen]:
    """The job, begun."""
    Path("stage.py").write_text(stage)
    environment = {**os.environ, "WANDB_API_KEY": SECRET}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    job = subprocess.Popen(hosts.command(0, sys.executable, "-u", "-c", DRIVER, launcher), env=environment, **streams)
    try:
        yield job
    finally:
        if job.poll() is None:  # killing nsenter would leave what it has entered with
            hosts.run(0, "pkill", "-9", "-f", "import RankedStage")
        job.wait()


def last_line() -> str:
    return Path("log").read_text().splitlines()[-1]


def nothing_left(hosts: Hosts, seconds: float = 30.0) -> bool:
    wait_for(lambda: not any(hosts.processes(i) for i in range(hosts.count)), seconds)
    return True


def test_both_hosts_run_their_rank_and_secrets_are_on_no_command_line(hosts: Hosts, folder: Path):
    with running(hosts) as job:
        seen = [line for i in range(2) for line in hosts.processes(i)]
        mode = (Path(".launch").stat().st_mode & 0o777, Path(".launch/sft.json").stat().st_mode & 0o777)
        Path("enough").touch()
        printed, _ = job.communicate(timeout=60)
    assert job.returncode == 0, printed
    assert Path("rank-0").read_text() == f"node0 0 2 0 1 eth0 10.77.0.1 {SECRET}"
    assert Path("rank-1").read_text() == f"node1 1 2 0 1 eth0 10.77.0.1 {SECRET}"
    assert any("stage.py" in line for line in seen)
    assert not any(SECRET in text for text in (*seen, printed, Path("log").read_text()))
    assert mode == (0o700, 0o600)
    assert nothing_left(hosts)


def test_a_host_without_power_ends_the_job_on_the_other(hosts: Hosts, folder: Path):
    with running(hosts) as job:
        hosts.kill(1)
        start = time.monotonic()
        assert job.wait(60) == 7
        assert time.monotonic() - start < 60
        assert "rank 1 on node1 is lost" in last_line()
        assert not hosts.processes(0)
    hosts.start(1)


def test_a_host_without_network_ends_the_job_on_both_sides(hosts: Hosts, folder: Path):
    with running(hosts) as job:
        hosts.link(1, "down")
        try:
            assert job.wait(60) == 7
            assert last_line().startswith("[NODE08] rank 1 on node1 is lost: silent for 8 s; fix: ")
            assert nothing_left(hosts)
        finally:
            hosts.link(1, "up")


@pytest.mark.parametrize("killed", ["deepspeed.launcher.runner", "deepspeed.launcher.launch"])
def test_a_launcher_that_is_killed_leaves_no_rank_behind(hosts: Hosts, folder: Path, killed: str):
    with running(hosts) as job:
        hosts.run(0, "pkill", "-9", "-o", "-f", f"^{sys.executable}.* -m {killed}", check=True)
        assert job.wait(60) == 7
        assert nothing_left(hosts)


def test_the_traceback_of_the_rank_that_fails_first_is_told_once(hosts: Hosts, folder: Path):
    fails = 'if os.environ["RANK"] == "1":\n    raise RuntimeError("no luck")\n'
    with running(hosts, STAGE.replace("sys.exit(", f"{fails}sys.exit(")) as job:
        Path("enough").touch()
        printed, _ = job.communicate(timeout=300)
    assert (job.returncode, printed) == (1, "")
    lines = Path("log").read_text().splitlines()
    assert lines.count("Traceback (most recent call last):") == 1
    assert lines[-2:] == [
        "RuntimeError: no luck",
        "rank 1 on node1 was the first of 2 to fail, with exit code 1",
    ]
    assert nothing_left(hosts)


def test_lines_of_torchrun_that_are_typed_on_each_host_become_one_job(hosts: Hosts, folder: Path):
    Path("enough").touch()
    with started(hosts, "torchrun") as job:
        told, line = job.stdout.readline(), job.stdout.readline().strip()
        assert told == "start this on node1 within 600 s:\n"
        typed = hosts.run(1, "bash", "-c", line, timeout=300)
        printed, _ = job.communicate(timeout=300)
    assert (typed.returncode, job.returncode) == (0, 0), typed.stderr + printed
    assert [Path(f"rank-{rank}").read_text().split()[:3] for rank in range(2)] == [
        ["node0", "0", "2"],
        ["node1", "1", "2"],
    ]
    assert nothing_left(hosts)


def test_a_host_without_python_is_named_before_anything_starts(hosts: Hosts, folder: Path):
    place = str(Path(sys.executable).parent)
    hosts.run(1, "mount", "-t", "tmpfs", "empty", place, check=True)
    try:
        with started(hosts, "deepspeed") as job:
            printed, _ = job.communicate(timeout=300)
    finally:
        hosts.run(1, "umount", place, check=True)
    assert job.returncode != 0
    assert f"[NODE11] node1: no Python at {sys.executable}; fix: " in printed
    assert not Path("log").read_text()
