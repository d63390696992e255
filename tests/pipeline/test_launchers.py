"""The exact lines that start a stage."""

import sys
from pathlib import Path

import pytest

from pipeline.hostfile import Host
from pipeline.launch_config import LaunchConfig
from pipeline.launchers import RANK_PROGRAM, World, hostfile_text, lines_for, world_of
from stages.base import InputError

JOB, HOSTFILE = Path("/runs/r/.launch/sft.json"), Path("/runs/r/.launch/hostfile")
TWO = World((Host("gpu01", 8), Host("gpu02", 8)))
PROGRAM = f"{RANK_PROGRAM} {JOB}"
DEEPSPEED = (
    f"{sys.executable} -m deepspeed.launcher.runner --hostfile {HOSTFILE} --launcher {{}} --force_multi "
    f"--no_local_rank --master_addr gpu01 --master_port 29500 {{}}{PROGRAM}"
)
NODES = {"hostfile": "hosts"}


def lines(world: World, **keys: object) -> list[str]:
    return [str(line) for line in lines_for(LaunchConfig(**keys), world, JOB, HOSTFILE)]


def test_several_ranks_of_this_host_are_started_by_torchrun_on_a_port_of_its_own():
    world = world_of(LaunchConfig(ranks=2))
    assert str(world) == "1 node x 2 = 2 ranks"
    assert lines(world, ranks=2) == [
        f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node=2 {PROGRAM}"
    ]


def test_pdsh_keeps_its_connections_alive_and_reads_no_file_of_the_users():
    assert lines(TWO, **NODES) == [
        "DS_ENV_FILE=/dev/null PDSH_SSH_ARGS_APPEND='-o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=5 "
        f"-o ServerAliveCountMax=3' {DEEPSPEED.format('pdsh', '')}"
    ]


def test_mpi_and_slurm_backends_get_the_options_they_need():
    (openmpi,) = lines(TWO, **NODES, backend="openmpi", interface="ib0")
    option = "'--launcher_args=--mca btl_tcp_if_include ib0' "
    assert openmpi == f"DS_ENV_FILE=/dev/null {DEEPSPEED.format('openmpi', option)}"
    (slurm,) = lines(TWO, **NODES, backend="slurm")
    option = "'--launcher_args=--nodes=2 --ntasks-per-node=8 --nodelist=gpu01,gpu02 --kill-on-bad-exit=1' "
    assert slurm == f"DS_ENV_FILE=/dev/null {DEEPSPEED.format('slurm', option)}"
    assert lines(TWO, **NODES, backend="mpich") == [f"DS_ENV_FILE=/dev/null {DEEPSPEED.format('mpich', '')}"]


def test_torchrun_has_one_line_per_node_with_its_own_number_and_slots():
    world = World((Host("gpu01", 8), Host("gpu02", 4)))
    found = lines_for(LaunchConfig(**NODES, launcher="torchrun", master_port=4000), world, JOB, HOSTFILE)
    start = f"{sys.executable} -m torch.distributed.run --nnodes=2 --node-rank="
    meeting = "--master-addr=gpu01 --master-port=4000"
    assert [(line.host, str(line)) for line in found] == [
        ("gpu01", f"{start}0 --nproc-per-node=8 {meeting} {PROGRAM}"),
        ("gpu02", f"{start}1 --nproc-per-node=4 {meeting} {PROGRAM}"),
    ]


def test_inside_an_allocation_srun_starts_all_ranks():
    launch = LaunchConfig(launcher="slurm", ranks=4, slurm={"nodes": 2})
    world = world_of(launch)
    assert str(world) == "2 nodes x 4 = 8 ranks"
    assert [str(line) for line in lines_for(launch, world, JOB, HOSTFILE)] == [
        f"srun --nodes=2 --ntasks=8 --ntasks-per-node=4 --kill-on-bad-exit=1 {sys.executable} {PROGRAM}"
    ]


def test_a_path_that_a_remote_shell_would_change_is_refused():
    with pytest.raises(InputError, match=r"\[NODE04\] '/runs/a b/sft.json'"):
        lines_for(LaunchConfig(**NODES), TWO, Path("/runs/a b/sft.json"), HOSTFILE)


def test_deepspeed_reads_the_hosts_as_we_do():
    from deepspeed.launcher.runner import _parse_hostfile

    world = World((Host("gpu02", 8), Host("10.0.0.7", 4)))
    assert list(_parse_hostfile(hostfile_text(world).splitlines()).items()) == [("gpu02", 8), ("10.0.0.7", 4)]


@pytest.mark.parametrize(("backend", "fits"), [("pdsh", True), ("openmpi", True), ("mpich", False), ("slurm", False)])
def test_uneven_slots_are_refused_where_the_backend_cannot_start_them(tmp_path: Path, backend: str, fits: bool):
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=2\nb slots=1\n")
    launch = LaunchConfig(hostfile=str(hosts), backend=backend)
    if fits:
        assert str(world_of(launch)) == "2 nodes x (2 + 1) = 3 ranks"
    else:
        with pytest.raises(InputError, match=r"\[NODE01\] .*:2 'b': found slots=1, expected slots=2 as before"):
            world_of(launch)
