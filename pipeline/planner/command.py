"""What `rlhf plan` shows. Imports no torch."""

from dataclasses import dataclass

from rich.console import Console

from pipeline.config import STAGES, PipelineConfig
from pipeline.model_files import require_safe_models
from pipeline.planner.costs import DEVICES, Device
from pipeline.planner.fitting import Setting, largest_microbatch, remedy
from pipeline.planner.memory import stage_memory
from pipeline.planner.roles import cast_of
from pipeline.planner.sharding import Split
from pipeline.planner.table import StagePlan, gigabytes, memory_table, work_table
from pipeline.planner.work import stage_work
from stages.base import InputError
from stages.deepspeed_config import DeepSpeedConfig


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

    Raises InputError PLAN01 for models whose sizes are not to be had, TUNE02 for more frozen layers than they have, and
    those of `require_safe_models`.
    """
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


def _split(config: PipelineConfig, asked: Asked) -> Split:
    section = config.deepspeed or DeepSpeedConfig()
    zero = section.zero_stage if asked.zero is None else asked.zero
    return Split(asked.ranks or 1, zero, section.offload_optimizer, section.offload_parameters)


def plan_of(setting: Setting, stage: str, device: Device, memory: float) -> StagePlan:
    """The plan of one stage. Raises InputError as `show_plan`."""
    config, cast = setting.config, cast_of(setting.config, stage)
    layers = min(role.architecture.layers for role in cast.everyone)
    if config.trunk.frozen_layers >= layers:
        problem = f"trunk.frozen_layers is {config.trunk.frozen_layers}, the model has {layers} layers"
        raise InputError("TUNE02", problem, fix=f"frozen_layers <= {layers - 1}")
    return StagePlan(
        memory=stage_memory(config, stage, cast, setting.split),
        work=stage_work(config, stage, cast, setting.split, device),
        microbatch=getattr(config, stage).microbatch_size,
        largest=largest_microbatch(setting, stage, cast, memory),
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
