"""What a person sees of how a run is started: its first lines, the commands, Slurm's file. Imports no torch."""

import os
from collections.abc import Iterator, Sequence

from pipeline.config import PipelineConfig
from pipeline.launch import printable, rlhf, stage_command
from pipeline.launchers import world_of
from pipeline.ranked_stage import RankedStage, ranked_stage
from pipeline.rundir import RunDir
from pipeline.slurm import FILE, in_allocation, sbatch_text
from pipeline.worker_environment import told_names, with_tokens
from stages.base import InputError
from stages.durable import write_text

_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def opening(config: PipelineConfig) -> Iterator[str]:
    """The first lines of a run of several processes; nothing for one, or when preflight will tell what is wrong."""
    if config.launch.alone:
        return
    try:
        yield headline(config)
    except InputError:
        return
    yield told_names(os.environ, with_tokens(config))


def headline(config: PipelineConfig) -> str:
    """How many processes there are, what is split over them, at which precision they compute.

    Raises:
        InputError: NODE01, NODE02 as in pipeline.launchers.
    """
    zero = f", ZeRO-{config.deepspeed.zero_stage}" if config.deepspeed else ""
    return f"{world_of(config.launch)}{zero}, {_SHORT[config.model.compute]}"


def start_lines(config: PipelineConfig, steps: Sequence[str]) -> Iterator[str]:
    """The headline, then what would start each step.

    Raises:
        InputError: NODE01, NODE02, NODE04 as in pipeline.launchers.
    """
    run = RunDir.at(config)
    yield headline(config)
    if for_slurm(config):
        yield f"{run.path / FILE}:\n{_sbatch(config, run, ())}"
    for step in steps:
        command = stage_command(step, run.path)
        yield f"[{step}] {shown(ranked_stage(config, run.path, step, command), command)}"


def shown(ranked: RankedStage | None, command: Sequence[str]) -> str:
    """The lines that start a step, each with the host where a person has to type it."""
    lines = ranked.lines() if ranked else []
    on = [f"on {line.host}: " if line.host else "" for line in lines]
    return "\n    ".join(f"{where}{line}" for where, line in zip(on, lines, strict=True)) or printable(command)


def for_slurm(config: PipelineConfig) -> bool:
    """Whether the run has to wait for nodes that Slurm has not given yet."""
    return config.launch.starter == "slurm" and not in_allocation(os.environ)


def leave_for_slurm(config: PipelineConfig, run: RunDir, options: Sequence[str]) -> str:
    """Write the file for sbatch; what to do with it."""
    file = run.path / FILE
    write_text(file, _sbatch(config, run, options))
    return f"Slurm starts this run with:\n    sbatch {printable([str(file)])}"


def _sbatch(config: PipelineConfig, run: RunDir, options: Sequence[str]) -> str:
    return sbatch_text(config, run.path, rlhf("run", str(run.config_file), *options))
