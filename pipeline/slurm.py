"""The file for `sbatch`: `rlhf run` on the first node, which starts each stage with srun. Imports no torch."""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config import PipelineConfig

FILE = "slurm.sbatch"


def in_allocation(environment: Mapping[str, str]) -> bool:
    """Whether Slurm has given this process nodes."""
    return "SLURM_JOB_ID" in environment


def allocated_hosts() -> list[str]:
    """Names of the nodes that Slurm has given. Raises OSError or CalledProcessError outside an allocation."""
    listed = subprocess.run(["scontrol", "show", "hostnames"], capture_output=True, text=True, check=True)
    return listed.stdout.split()


def sbatch_text(config: PipelineConfig, run: Path, command: Sequence[str]) -> str:
    """A job of the nodes that the config asks for, which runs `command` there and passes Slurm's SIGTERM on to it."""
    slurm = config.launch.slurm
    options = {
        "--job-name": f"rlhf-{config.run.name}",
        "--nodes": str(slurm.nodes),
        "--ntasks-per-node": str(config.launch.ranks),
        "--time": slurm.time,
        "--partition": slurm.partition,
        "--account": slurm.account,
        "--output": f"{run.resolve()}/slurm-%j.txt",
        "--signal": f"B:TERM@{slurm.grace_s}",
    }
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {name}={value}" for name, value in options.items() if value is not None),
        *(f"#SBATCH {option}" for option in slurm.options),
        "set -e",
        f"cd {shlex.quote(os.getcwd())}",
        *slurm.setup,
        f"exec {shlex.join(command)}",
    ]
    return "\n".join(lines) + "\n"
