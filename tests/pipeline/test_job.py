"""Ranks as real processes: they start together, end together, and leave nothing behind, whatever the launcher does."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Listener
from pathlib import Path

import pytest

from pipeline.job import Job
from pipeline.job_file import JobFile, new_key, write_private
from pipeline.job_log import JobLog
from pipeline.launchers import RANK_PROGRAM, Line

ROOT = Path(__file__).parents[2]
LAUNCHER = """
import os, subprocess, sys
world, *ranks = map(int, sys.argv[1].split(","))
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE")
started = []
for rank in ranks:
    environment = {**os.environ, **dict(zip(names, map(str, (rank, rank, world, world))))}
    started.append(subprocess.Popen([sys.executable, *sys.argv[2:]], env=environment))
for process in started:
    process.wait()
"""
"""Starts some ranks of a world, and neither notices that one fails, nor ends the others, nor passes its code on."""

STAGE = """
import os, sys, time
from pipeline.signals import end_with_parent
end_with_parent()
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
open(f"pids-{rank}", "w").write(f"{os.getpid()} {os.getppid()}")
"""
HANGS = "time.sleep(600)"


class Started:
    """Runs one job in this process and keeps what it left."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.log = ""

    def __call__(self, program: str, ranks: str = "2,0,1", **limits: float) -> int:
        """Exit code of a job of two ranks, whose launcher starts `ranks`: the world's size, then the ranks."""
        with Listener(("127.0.0.1", 0), "AF_INET", backlog=2) as listener, Path("log").open("wb") as log:
            limits = {"join_timeout_s": 60.0, "lost_after_s": 30.0, **limits}
            command = [sys.executable, "-c", STAGE + program]
            file = JobFile(command, str(self.folder), {"GIVEN": "as told"}, listener.address, new_key(), **limits)
            Path("job").unlink(missing_ok=True)
            write_private(Path("job"), file)
            job = Job(2, file, JobLog(log), listener)
            self.before(listener.address)
            arguments = (sys.executable, "-c", LAUNCHER, ranks, RANK_PROGRAM, str(self.folder / "job"))
            job.start([Line(arguments)], {**os.environ, "PYTHONPATH": str(ROOT)})
            code = job.wait()
        self.log = Path("log").read_text()
        return code

    before: Callable[[tuple[str, int]], None] = staticmethod(lambda address: None)

    def left(self) -> list[int]:
        """Processes of ranks that still exist."""
        pids = [int(pid) for file in self.folder.glob("pids-*") for pid in file.read_text().split()]
        return [pid for pid in pids if alive(pid)]


def alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Started:
    monkeypatch.chdir(tmp_path)
    return Started(tmp_path)


def test_all_ranks_run_the_command_with_their_numbers_and_the_environment(start: Started, capsys):
    program = """
print(*(os.environ[n] for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "GIVEN")))
print(os.environ["GLOO_SOCKET_IFNAME"], file=sys.stderr)
"""
    assert start(program) == 0
    assert capsys.readouterr().out == "0 2 0 2 127.0.0.1 as told\nlo\n"
    here = socket.gethostname()
    assert sorted(start.log.splitlines()) == [
        *("0 2 0 2 127.0.0.1 as told", f"[rank 1 {here}] 1 2 1 2 127.0.0.1 as told", f"[rank 1 {here}] lo", "lo")
    ]
    assert start.left() == []


def test_a_rank_that_raises_ends_all_and_its_traceback_is_what_is_told(start: Started, capsys):
    code = start("print('ready', flush=True)\nif rank: raise RuntimeError('broken')\n" + HANGS)
    assert code == 1
    told = f"rank 1 on {socket.gethostname()} was the first of 2 to fail, with exit code 1"
    *_, error, last = start.log.splitlines()
    assert (error, last) == ("RuntimeError: broken", told)
    assert "broken" not in capsys.readouterr().out  # the runner shows the end of the log
    assert start.left() == []


def test_a_long_traceback_is_told_from_its_first_line_on(start: Started):
    calls = "".join(f"def f{i}(): f{i + 1}()\n" for i in range(40))
    assert start(f"{calls}def f40(): raise RuntimeError('deep')\nif rank: f0()\n{HANGS}") == 1
    lines = start.log.splitlines()
    assert lines.count("Traceback (most recent call last):") == 1
    assert len(lines) - lines.index("Traceback (most recent call last):") > 40


def test_a_rank_that_only_missed_another_one_is_not_the_cause(start: Started):
    program = "if not rank: sys.exit(7)\ntime.sleep(1); print('row 3 is bad'); sys.exit(2)"
    assert start(program) == 2
    assert start.log.splitlines()[-2:] == [
        "row 3 is bad",
        f"rank 1 on {socket.gethostname()} was the first of 2 to fail, with exit code 2",
    ]


def test_a_rank_that_is_killed_with_its_supervisor_is_lost(start: Started):
    assert start(f"if rank: os.kill(os.getppid(), 9)\n{HANGS}") == 7
    assert start.log.splitlines()[-1] == (
        f"[NODE08] rank 1 on {socket.gethostname()} is lost: connection closed; fix: look at that host, then run again"
    )
    assert start.left() == []


def test_a_world_of_another_size_never_starts(start: Started):
    assert start("print('started')", ranks="1,0") == 3
    assert "[NODE07] " in start.log.splitlines()[-1]
    assert "joined a world of 1 ranks, expected 2" in start.log
    assert start.left() == []


def test_a_rank_that_does_not_come_is_named(start: Started):
    assert start("print('started')", ranks="2,0", join_timeout_s=2.0) == 3
    assert start.log.splitlines()[-1].startswith("[NODE10] not all ranks have started in 2 s; missing: 1; fix: ")
    assert "started\n" not in start.log


def test_a_launcher_that_fails_says_why(start: Started):
    assert start("", ranks="two") == 3
    assert start.log.splitlines()[-2].startswith("ValueError: invalid literal for int()")
    assert start.log.splitlines()[-1].startswith("[NODE09] the launcher ended with code 1 before all ranks had joined")


def test_a_rank_with_another_environment_than_it_was_given_is_refused(start: Started):
    start.before = lambda address: Path("job").write_text(Path("job").read_text().replace("as told", "otherwise"))
    assert start("print('started')") == 3
    assert "has another environment than it was given; fix: " in start.log.splitlines()[-1]
    assert "started" not in start.log


def test_a_rank_that_finds_no_job_file_says_on_which_host(tmp_path: Path):
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}
    command = [sys.executable, RANK_PROGRAM, str(tmp_path / "job")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.startswith(f"{socket.gethostname()}: [NODE05] no {tmp_path}/job on this host; fix: ")


def test_who_does_not_know_the_key_is_not_let_in(start: Started):
    strangers = []

    def knock(address: tuple[str, int]) -> None:
        silent, wrong = socket.create_connection(address), socket.create_connection(address)
        wrong.sendall(b"\0\0\0\4rank")
        strangers.extend((silent, wrong))

    start.before = knock
    assert start("print('fine')") == 0
    assert start.log.splitlines().count("fine") == 1


DRIVER = """
import sys
from pathlib import Path
from pipeline.launch_config import LaunchConfig
from pipeline.launchers import world_of
from pipeline.ranked_stage import RankedStage, run_ranks
from pipeline.signals import Relay
from pipeline.watchdog import Watch
launch = LaunchConfig(ranks=2)
stage = RankedStage("sft", [sys.executable, "stage.py"], Path(), launch, world_of(launch))
with Relay().installed() as relay, Path("log").open("wb") as log:
    sys.exit(run_ranks(stage, log, relay, Watch("sft", Path(), None), print))
"""
POLITE_STAGE = """
from pipeline.signals import listening
from stages.stopping import StopRequest
stop = StopRequest()
with listening(stop):
    open(f"pids-{rank}", "a").write(" ")
    while stop.signal is None:
        time.sleep(0.05)
sys.exit(128 + stop.signal)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_signals_to_the_run_reach_all_ranks_started_by_torchrun(start: Started, number: signal.Signals, code: int):
    Path("stage.py").write_text(STAGE + POLITE_STAGE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, "-c", DRIVER], env=environment, stdout=subprocess.DEVNULL)
    wait_for(lambda: [file.read_text()[-1:] for file in start.folder.glob("pids-*")] == [" ", " "])
    run.send_signal(number)
    assert run.wait(30) == code
    wait_for(lambda: start.left() == [])
    if number != signal.SIGKILL:
        assert list(start.folder.glob(".launch*")) == []


def wait_for(done: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)
