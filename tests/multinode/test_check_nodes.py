"""`rlhf check --nodes` on real hosts: what is wrong with each is told of each, in one go."""

import sys
from pathlib import Path

from tests.bad_inputs.place import fill
from tests.multinode.hosts import Hosts

HOSTS = 4
RLHF = (sys.executable, "-m", "pipeline.cli")
CHECK = (*RLHF, "check", "config.yaml", "--nodes", "hosts")


def test_what_is_in_order_is_told_and_a_megabyte_is_summed_over_all_hosts(hosts: Hosts, folder: Path):
    fill()
    Path("hosts").write_text("node0 slots=1\nnode1 slots=1\n")
    done = hosts.run(0, *CHECK, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "[launch] deepspeed: 2 nodes x 1 = 2 ranks" in lines
    assert "[launch] run folder runs/small: shared by all hosts" in lines
    assert [line for line in lines if line.startswith("[launch] 1 MB summed over 2 hosts in ")]
    assert [line.partition(",")[0] for line in lines if "reaches this host" in line] == [
        "[node0] eth0 10.77.0.1",
        "[node1] eth0 10.77.0.2",
    ]
    assert list(folder.glob(".rlhf-check*")) == []


def test_a_host_without_sshd_python_or_room_is_named_with_what_it_lacks(hosts: Hosts, folder: Path):
    fill()
    for place in (str(folder), "/dev/shm"):
        hosts.run(1, "mount", "-t", "tmpfs", "-o", "size=1m", "small", place, check=True)
    hosts.run(2, "mount", "-t", "tmpfs", "empty", str(Path(sys.executable).parent), check=True)
    hosts.stop_sshd(3)
    done = hosts.run(0, *CHECK, timeout=300)
    assert done.returncode == 3
    assert [line.partition(";")[0] for line in done.stderr.splitlines()] == [
        "[NODE15] node1: does not see what this host writes to runs/small",
        "[NODE16] node1: /dev/shm: free 1,048,576 bytes, needed 268,435,456",
        f"[NODE11] node2: no Python at {sys.executable}",
        "[NODE03] node3: ssh exit 255: ssh: connect to host node3 port 22: Connection refused",
    ]
    assert [line for line in done.stdout.splitlines() if line.startswith("[node")][0].startswith("[node0] ssh, Python ")


def test_a_run_does_not_start_on_hosts_that_do_not_answer(hosts: Hosts, folder: Path):
    fill()
    Path("hosts").write_text("node0 slots=1\nnode9 slots=1\n")
    done = hosts.run(0, *CHECK, timeout=300)
    assert done.returncode == 3
    assert done.stderr.startswith("[NODE03] node9: ")
