"""What is said of a host that differs from this one; real hosts are in multinode."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.hostfile import Host
from pipeline.node_check import Seen, mistakes
from pipeline.node_probe import code_hash
from pipeline.ssh import last_line, on_all, without
from stages.base import InputError

OWN = {
    "python": "3.11.7",
    "packages": {"torch": "2.13.0", "trl": "1.16.0", "deepspeed": None},
    "code": "ab" * 32,
    "time": 1000.0,
    "shared": True,
    "free": {"runs/r": 10**9, "/tmp": 10**9},
    "network": None,
    "port_taken": False,
}
ROOMS = {"runs/r": 10**6, "/tmp": 10**6}


def told(asked: float = 999.0, answered: float = 1001.0, **answer: object) -> list[str]:
    seen = Seen(Host("gpu02", 8), {**copy.deepcopy(OWN), **answer}, asked, answered)
    return [str(error).partition("; fix: ")[0] for error in mistakes(seen, OWN, "runs/r", ROOMS)]


def test_a_host_like_this_one_has_no_mistakes():
    assert told() == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"python": "3.11.2"}, "[NODE11] gpu02: Python: found 3.11.2, here 3.11.7"),
        (
            {"packages": {"torch": "2.12.0", "trl": "1.16.0", "deepspeed": None}},
            "[NODE12] gpu02: package torch: found 2.12.0, here 2.13.0",
        ),
        (
            {"packages": {"torch": "2.13.0", "trl": None, "deepspeed": None}},
            "[NODE12] gpu02: package trl: found none, here 1.16.0",
        ),
        ({"code": "cd" * 32}, "[NODE13] gpu02: other source files of this program: cdcdcdcdcdcd, here abababababab"),
        ({"time": 1021.5}, "[NODE14] gpu02: its clock is 20 s ahead"),
        ({"time": 939.0}, "[NODE14] gpu02: its clock is 60 s behind"),
        ({"shared": False}, "[NODE15] gpu02: does not see what this host writes to runs/r"),
        ({"free": {"runs/r": 10**9, "/tmp": 7}}, "[NODE16] gpu02: /tmp: free 7 bytes, needed 1,000,000"),
        ({"network": "interface ib0: No such device"}, "[NODE17] gpu02: network: interface ib0: No such device"),
        ({"port_taken": True}, "[NODE17] gpu02: launch.master_port is in use"),
    ],
)
def test_a_difference_is_told(answer: dict[str, object], said: str):
    assert told(**answer) == [said]


def test_the_time_that_a_slow_answer_takes_is_no_skew():
    assert told(asked=900.0, answered=1100.0, time=905.0) == []


def test_the_code_is_its_names_and_contents(tmp_path: Path):
    (tmp_path / "pipeline").mkdir()
    source = tmp_path / "pipeline" / "a.py"
    source.write_text("x = 1")
    first = code_hash(tmp_path)
    source.write_text("x = 2")
    assert code_hash(tmp_path) != first
    source.write_text("x = 1")
    (tmp_path / "pipeline" / "notes.txt").write_text("")
    assert code_hash(tmp_path) == first
    source.rename(source.with_name("b.py"))
    assert code_hash(tmp_path) != first


def test_hosts_are_asked_at_once_and_answer_in_their_order():
    hosts = [Host("a", 1), Host("b", 1)]
    error = InputError("NODE03", "b: no", fix="x")

    def ask(host: Host) -> str:
        if host.name == "b":
            raise error
        return host.name

    assert on_all(hosts, ask) == ["a", error]
    assert without(hosts, ["a"]) == (hosts[1],)
    assert last_line("one\n two \n\n") == "two"


def test_the_probe_needs_the_standard_library_alone():
    probe = Path(sys.modules["pipeline.node_probe"].__file__)
    done = subprocess.run([sys.executable, "-S", str(probe), "look"], input="{", capture_output=True, text=True)
    assert "JSONDecodeError" in done.stderr  # it came as far as the question, without site-packages
