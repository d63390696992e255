"""Runs a stage's command on all ranks of a job, as `run_logged` does in one process. Imports no torch."""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Listener
from pathlib import Path
from typing import BinaryIO

from pipeline.config import PipelineConfig
from pipeline.job import Job
from pipeline.job_file import FOLDER, JobFile, new_key, private_folder, write_private
from pipeline.job_log import JobLog
from pipeline.launch_config import LaunchConfig
from pipeline.launchers import Line, World, hostfile_text, lines_for, world_of
from pipeline.network import address_of, address_towards, is_here
from pipeline.problems import EXIT_HANG, raise_together
from pipeline.ranks import EXPECTED
from pipeline.same_software import unfit
from pipeline.signals import Relay
from pipeline.slurm import allocated_hosts
from pipeline.ssh import without
from pipeline.watchdog import Watch
from pipeline.worker_environment import launcher_environment, passed_variables, with_tokens
from stages.base import InputError

ALONE = ("evaluation",)
"""Steps that one process does, on this host."""


@dataclass(frozen=True)
class RankedStage:
    """A stage's command and where it is to run."""

    name: str
    command: Sequence[str]
    run: Path
    launch: LaunchConfig
    world: World

    def lines(self) -> list[Line]:
        """What starts its ranks. Raises InputError NODE04 as in pipeline.launchers."""
        folder = (self.run / FOLDER).resolve()
        return lines_for(self.launch, self.world, folder / f"{self.name}.json", folder / "hostfile")


def ranked_stage(
    config: PipelineConfig, run: Path, step: str, command: Sequence[str], gone: Iterable[str] = ()
) -> RankedStage | None:
    """A step that runs on several ranks or through a launcher; None for one that is a process of its own here.

    Hosts in `gone` are left out.

    Raises:
        InputError: NODE01, NODE02 as in pipeline.launchers.
    """
    if config.launch.alone or step in ALONE:
        return None
    world = world_of(config.launch)
    return RankedStage(step, command, run, with_tokens(config), World(without(world.hosts, gone)))


def run_ranks(stage: RankedStage, log: BinaryIO, relay: Relay, watch: Watch, tell: Callable[[str], None]) -> int:
    """Run a stage on all its ranks; the exit code of the first that failed, else of rank 0.

    Raises:
        InputError: NODE03, NODE11 to NODE13, NODE19 a host that cannot take part; NODE04 a path that cannot be passed.
    """
    if uses_ssh(stage.launch):
        raise_together([*unfit(stage.world.hosts).values()])
    lines, address = stage.lines(), meeting_address(stage.launch, stage.world)
    with private_folder(stage.run) as folder, Listener((address, 0), "AF_INET", backlog=stage.world.size) as listener:
        job_file = _job_file(stage, listener.address)
        (folder / "hostfile").write_text(hostfile_text(stage.world))
        write_private(folder / f"{stage.name}.json", job_file)
        here = [line for line in lines if line.host is None or is_here(line.host)]
        for line in (line for line in lines if line not in here):
            tell(f"start this on {line.host} within {stage.launch.join_timeout_s:g} s:\n    {line}")
        job = Job(stage.world.size, job_file, JobLog(log), listener)
        relay.adopt(job)
        with _ended(job), watch.over(job.end_with_stacks, job.complete) as hung:
            job.start(here, launcher_environment(os.environ))
            code = relay.wait()
        for told in hung:
            job.log.tell(told)
        return EXIT_HANG if hung else code


def uses_ssh(launch: LaunchConfig) -> bool:
    """Whether the launcher reaches the hosts by ssh."""
    return launch.starter == "deepspeed" and launch.backend != "slurm"


def meeting_address(launch: LaunchConfig, world: World) -> str:
    """This host's address for the ranks. Raises InputError NODE03 when there is no way to one of the hosts."""
    if launch.starter == "local":
        return "127.0.0.1"
    if launch.interface:
        return _reached(launch.interface, address_of)
    hosts = allocated_hosts() if launch.starter == "slurm" else [host.name for host in world.hosts]
    found = [_reached(host, address_towards) for host in hosts]
    return next((address for address in found if not address.startswith("127.")), found[0])


def _reached(name: str, way: Callable[[str], str]) -> str:
    try:
        return way(name)
    except OSError as error:
        problem = f"{name}: no network address of this host leads there ({error})"
        raise InputError("NODE03", problem, fix="correct the name, or set launch.interface") from error


def _job_file(stage: RankedStage, address: tuple[str, int]) -> JobFile:
    launch = stage.launch
    return JobFile(
        command=list(stage.command),
        folder=os.getcwd(),
        environment={**passed_variables(os.environ, launch), EXPECTED: str(stage.world.size)},
        address=address,
        key=new_key(),
        join_timeout_s=launch.join_timeout_s,
        lost_after_s=launch.lost_after_s,
        interface=launch.interface,
        master_address=launch.master_address,
        master_port=launch.master_port,
    )


@contextmanager
def _ended(job: Job):
    """Inside, no way out leaves a launcher behind."""
    try:
        yield
    except BaseException:
        job.end()
        raise
