"""What `rlhf plan` shows. Imports no torch."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.config import STAGES, PipelineConfig
from pipeline.deepspeed_file import deepspeed_errors
from pipeline.launchers import world_of
from pipeline.model_files import require_safe_models
from pipeline.parents import is_local
from pipeline.planner.costs import DEVICES, Device
from pipeline.planner.fitting import Setting, largest_microbatch, remedy
from pipeline.planner.memory import stage_memory
from pipeline.planner.sharding import Split
from pipeline.planner.table import StagePlan, gigabytes, memory_table, work_table
from pipeline.planner.work import stage_work
from pipeline.preflight import unprepared
from pipeline.problems import missing_path, raise_together
from stages.base import InputError
from stages.batch_split import BatchSplit
from stages.deepspeed_config import DeepSpeedConfig
from stages.deepspeed_json import deepspeed_json


@dataclass(frozen=True)
class Asked:
    """What a person gives on the command line; None where the config decides."""

    ranks: int | None = None
    zero: int | None = None
    memory_gb: float | None = None
    """10^9 bytes of each rank's device; None = the device's."""
    device: str = "a100"


def show_plan(config: PipelineConfig, asked: Asked, console: Console) -> None:
    """Print memory, traffic and time of every enabled stage, and what to change where one does not fit.

    Raises InputError PATH01 and PLAN01 for models whose sizes are not to be had, TUNE02 for more frozen layers than
    they have, and those of `require_safe_models`, `deepspeed_errors` and `world_of`.
    """
    _require_model(config)
    require_safe_models(config)
    setting = Setting(config, _split(config, asked))
    device = DEVICES[asked.device]
    memory = device.memory if asked.memory_gb is None else asked.memory_gb * 1e9
    plans = [plan_of(setting, stage, device, memory) for stage in STAGES if getattr(config, stage).enabled]
    console.print(memory_table(plans, setting.split))
    console.print(work_table(plans, device))
    for plan in plans:
        for line in _verdict(plan, setting, memory):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _require_model(config: PipelineConfig) -> None:
    path, prepare = config.model.path, config.prepare
    if not is_local(path) or Path(path).exists():
        return
    if prepare is None or not unprepared(config):
        raise missing_path(path, "model.path")
    command = shlex.join(["python", prepare.script, *prepare.arguments])
    problem = f"the sizes of the model '{path}' are not known before {prepare.script} has made it"
    raise InputError("PLAN01", problem, fix=command)


def _split(config: PipelineConfig, asked: Asked) -> Split:
    """What the sections `launch` and `deepspeed` (or the file that it names) say, unless a person asks for another."""
    raise_together(deepspeed_errors(config))
    section = deepspeed_json(config.deepspeed, BatchSplit(1, 1, 1), 1.0)["zero_optimization"]
    zero = int(section["stage"] if asked.zero is None else asked.zero)
    return Split(
        ranks=asked.ranks or world_of(config.launch).size,
        zero=zero,
        offload_optimizer=zero > 0 and _offloads(section, "offload_optimizer"),
        offload_parameters=zero == 3 and _offloads(section, "offload_param"),
        gather_for_rollouts=(config.deepspeed or DeepSpeedConfig()).gather_for_rollouts,
        all_reduces=section.get("use_multi_rank_bucket_allreduce", Split.all_reduces),
        bucket=int(section.get("reduce_bucket_size", Split.bucket)),
        live=int(section.get("stage3_max_live_parameters", Split.live)),
    )


def _offloads(section: Mapping[str, Any], key: str) -> bool:
    return (section.get(key) or {}).get("device", "none") != "none"


def plan_of(setting: Setting, stage: str, device: Device, memory: float) -> StagePlan:
    """The plan of one stage. Raises InputError as `show_plan`."""
    config, cast = setting.config, setting.cast(stage)
    layers = min(role.architecture.layers for role in cast.everyone)
    if config.trunk.frozen_layers >= layers:
        problem = f"trunk.frozen_layers is {config.trunk.frozen_layers}, the model has {layers} layers"
        raise InputError("TUNE02", problem, fix=f"frozen_layers <= {layers - 1}")
    return StagePlan(
        memory=stage_memory(config, stage, cast, setting.split),
        work=stage_work(config, stage, cast, setting.split, device),
        microbatch=getattr(config, stage).microbatch_size,
        largest=largest_microbatch(setting, stage, memory),
    )


def _verdict(plan: StagePlan, setting: Setting, memory: float) -> list[str]:
    stage, peak = plan.memory.stage, plan.memory.peak
    host = f"; {gigabytes(plan.memory.host)} GB of the host per rank" if plan.memory.host else ""
    if peak <= memory:
        return [f"{stage}: fits, {gigabytes(peak)} of {gigabytes(memory)} GB{host}"]
    changes = remedy(setting, stage, memory)
    if changes is None:
        advice = "no setting makes it fit on so many ranks: more ranks under ZeRO-3, or a smaller model"
    else:
        advice = f"first knob to turn: {changes[0]}" + "".join(f", then {change}" for change in changes[1:])
    return [f"{stage}: does not fit, {gigabytes(peak)} of {gigabytes(memory)} GB{host}; {advice}"]
