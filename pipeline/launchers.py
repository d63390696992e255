"""The lines that start one stage on all its ranks. Pure functions, imports no torch.

Every line runs `pipeline/rank.py JOB_FILE` once per rank. Nothing else is passed: DeepSpeed hands arguments to remote
shells as they are, and command lines are no place for an environment.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.hostfile import Host, read_hostfile
from pipeline.launch_config import LaunchConfig
from pipeline.ssh import OPTIONS
from stages.base import InputError

RANK_PROGRAM = str(Path(__file__).resolve().with_name("rank.py"))
DEFAULT_PORT = 29500
_PROGRAMS = {"pdsh": "pdsh", "openmpi": "ompi_info", "mpich": "mpirun", "impi": "mpirun", "slurm": "srun"}
"""What DeepSpeed looks for."""


@dataclass(frozen=True)
class World:
    """The hosts of a job in the order of their ranks."""

    hosts: tuple[Host, ...]

    @property
    def size(self) -> int:
        """Number of ranks."""
        return sum(host.slots for host in self.hosts)

    def __str__(self) -> str:
        slots = [host.slots for host in self.hosts]
        each = str(slots[0]) if len(set(slots)) == 1 else f"({' + '.join(map(str, slots))})"
        nodes = "1 node" if len(slots) == 1 else f"{len(slots)} nodes"
        return f"{nodes} x {each} = {self.size} rank{'s' if self.size > 1 else ''}"


@dataclass(frozen=True)
class Line:
    """One command that starts ranks."""

    arguments: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    """What the launcher itself has to be told beside its environment."""
    host: str | None = None
    """Where a person has to type it; None = `rlhf run` starts it."""

    def __str__(self) -> str:
        told = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        return " ".join([*told, shlex.join(self.arguments)])


def world_of(launch: LaunchConfig) -> World:
    """The hosts that a config names.

    Raises:
        InputError: NODE01 and NODE02 as in pipeline.hostfile; NODE01 slots that the backend cannot start.
    """
    if launch.starter == "local":
        return World((Host("localhost", launch.ranks),))
    if launch.starter == "slurm":
        return World(tuple(Host(f"node {i + 1}", launch.ranks) for i in range(launch.slurm.nodes)))
    world = World(read_hostfile(launch.hostfile))
    uneven = next((host for host in world.hosts if host.slots != world.hosts[0].slots), None)
    if uneven and launch.starter == "deepspeed" and launch.backend in ("mpich", "impi", "slurm"):
        problem = (
            f"{launch.hostfile}:{uneven.line} '{uneven.name}': found slots={uneven.slots}, "
            f"expected slots={world.hosts[0].slots} as before, since {launch.backend} starts as many on every host"
        )
        raise InputError("NODE01", problem, fix="give every host the same slots, or launch.backend=pdsh")
    return world


def hostfile_text(world: World) -> str:
    """The hosts as DeepSpeed and mpirun read them."""
    return "".join(f"{host.name} slots={host.slots}\n" for host in world.hosts)


def lines_for(launch: LaunchConfig, world: World, job_file: Path, hostfile: Path) -> list[Line]:
    """What starts the ranks of `job_file`, with the hosts of `world` in `hostfile`.

    Raises:
        InputError: NODE04 a path that a remote shell would not take as it is.
    """
    program = (sys.executable, RANK_PROGRAM, str(job_file))
    if launch.starter == "local":
        starts = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world.size}")
        return [Line((*starts, *program[1:]))]
    if launch.starter == "slurm":
        counts = (f"--nodes={len(world.hosts)}", f"--ntasks={world.size}", f"--ntasks-per-node={launch.ranks}")
        return [Line(("srun", *counts, "--kill-on-bad-exit=1", *program))]
    if launch.starter == "torchrun":
        return [_torchrun(launch, world, node, program[1:]) for node in range(len(world.hosts))]
    _require_plain_paths([os.getcwd(), *program, str(hostfile)])
    return [_deepspeed(launch, world, program[1:], hostfile)]


def missing_program(launch: LaunchConfig) -> InputError | None:
    """DEP02: what a launcher calls is not installed on this host."""
    name = {"deepspeed": _PROGRAMS[launch.backend], "slurm": "sbatch"}.get(launch.starter)
    if name is None or shutil.which(name):
        return None
    where = f"launch.backend: {launch.backend}" if launch.starter == "deepspeed" else "launch.launcher: slurm"
    return InputError("DEP02", f"{where} needs the program {name}, which is not installed", fix=f"install {name}")


def _torchrun(launch: LaunchConfig, world: World, node: int, program: Sequence[str]) -> Line:
    first, host = world.hosts[0], world.hosts[node]
    options = (
        f"--nnodes={len(world.hosts)}",
        f"--node-rank={node}",
        f"--nproc-per-node={host.slots}",
        f"--master-addr={launch.master_address or first.name}",
        f"--master-port={launch.master_port or DEFAULT_PORT}",
    )
    return Line((sys.executable, "-m", "torch.distributed.run", *options, *program), host=host.name)


def _deepspeed(launch: LaunchConfig, world: World, program: Sequence[str], hostfile: Path) -> Line:
    """--force_multi: with one host, DeepSpeed would start it here, whichever host that is."""
    options = (
        *("--hostfile", str(hostfile), "--launcher", launch.backend, "--force_multi", "--no_local_rank"),
        *("--master_addr", launch.master_address or world.hosts[0].name),
        *("--master_port", str(launch.master_port or DEFAULT_PORT)),
        *_backend_options(launch, world),
    )
    return Line((sys.executable, "-m", "deepspeed.launcher.runner", *options, *program), _backend_variables(launch))


def _backend_options(launch: LaunchConfig, world: World) -> tuple[str, ...]:
    if launch.backend == "openmpi" and launch.interface:  # DeepSpeed takes eth0 otherwise
        return (f"--launcher_args=--mca btl_tcp_if_include {launch.interface}",)
    if launch.backend == "slurm":
        nodes = len(world.hosts)
        per_node = world.hosts[0].slots
        named = ",".join(host.name for host in world.hosts)
        counts = f"--nodes={nodes} --ntasks-per-node={per_node} --nodelist={named} --kill-on-bad-exit=1"
        return (f"--launcher_args={counts}",)
    return ()


def _backend_variables(launch: LaunchConfig) -> dict[str, str]:
    """DS_ENV_FILE: no file of the user's, whose lines DeepSpeed would put on command lines."""
    variables = {"DS_ENV_FILE": os.devnull}
    if launch.backend == "pdsh":
        variables["PDSH_SSH_ARGS_APPEND"] = " ".join(f"-o {option}" for option in OPTIONS)
    return variables


def _require_plain_paths(paths: Sequence[str]) -> None:
    for path in paths:
        if shlex.quote(path) != path:
            problem = f"{path!r}: DeepSpeed hands paths to the remote shell unquoted, which would change this one"
            raise InputError("NODE04", problem, fix="use a plain path, or launch.launcher=torchrun")
