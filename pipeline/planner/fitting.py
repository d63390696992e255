"""What fits into a rank's memory: the largest microbatch, and the first knob to turn where nothing does. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config import PipelineConfig
from pipeline.planner.memory import rows_per_step, stage_memory
from pipeline.planner.roles import Cast, cast_of
from pipeline.planner.sharding import Split
from stages.models.config import TuningConfig


@dataclass(frozen=True)
class Setting:
    """A config and how its work is divided."""

    config: PipelineConfig
    split: Split

    def peak(self, stage: str) -> float:
        """Bytes of a stage on one rank."""
        return stage_memory(self.config, stage, self.cast(stage), self.split).peak

    def cast(self, stage: str) -> Cast:
        return cast_of(self.config, stage, self.split.shares_bases)

    def with_section(self, section: str, **values: Any) -> "Setting":
        changed = getattr(self.config, section).model_copy(update=values)
        return replace(self, config=self.config.model_copy(update={section: changed}))

    def with_split(self, **values: Any) -> "Setting":
        return replace(self, split=replace(self.split, **values))


def largest_microbatch(setting: Setting, stage: str, memory: float) -> int:
    """The largest microbatch size (sequences, pairs or completions) that fits and divides a rank's batch; 0 if none."""
    share, cast = rows_per_step(setting.config, stage, setting.split), setting.cast(stage)

    def fits(size: int) -> bool:
        tried = setting.with_section(stage, microbatch_size=size)
        return stage_memory(tried.config, stage, cast, tried.split).peak <= memory

    return next((size for size in range(share, 0, -1) if share % size == 0 and fits(size)), 0)


@dataclass(frozen=True)
class Knob:
    """A change, as one writes it, and where it leads."""

    change: str
    setting: Setting

    @property
    def kind(self) -> str:
        """What is turned, whatever its value."""
        return self.change.partition("=")[0]


def knobs(setting: Setting, stage: str) -> Iterator[Knob]:
    """Changes that lower the peak of a stage, those that cost least first."""
    yield from _batch_knobs(setting, stage)
    yield from _split_knobs(setting)
    yield from _weight_knobs(setting, stage)
    if setting.split.zero == 3:
        for ranks in (setting.split.ranks * 2**power for power in range(1, 7)):
            yield Knob(f"ranks={ranks}", setting.with_split(ranks=ranks))


def _batch_knobs(setting: Setting, stage: str) -> Iterator[Knob]:
    """What is computed at a time; none of these changes what is learned, but the size of PPO's rollouts."""
    section = getattr(setting.config, stage)
    if not section.gradient_checkpointing:
        yield Knob(f"{stage}.gradient_checkpointing=true", setting.with_section(stage, gradient_checkpointing=True))
    for size in _halves(section.microbatch_size):
        yield Knob(f"{stage}.microbatch_size={size}", setting.with_section(stage, microbatch_size=size))
    for size in _halves(section.rollout_batch_size) if stage == "ppo" else ():
        if size % section.minibatch_size == 0:
            yield Knob(f"ppo.rollout_batch_size={size}", setting.with_section(stage, rollout_batch_size=size))


def _split_knobs(setting: Setting) -> Iterator[Knob]:
    """Where optimizer, gradients and weights lie."""
    split = setting.split
    for zero in range(split.zero + 1, 4) if split.ranks > 1 else ():
        yield Knob(f"deepspeed.zero_stage={zero}", setting.with_split(zero=zero))
    if split.zero == 3 and split.gather_for_rollouts:
        yield Knob("deepspeed.gather_for_rollouts=false", setting.with_split(gather_for_rollouts=False))
    if split.zero and not split.offload_optimizer:
        yield Knob("deepspeed.offload_optimizer=true", setting.with_split(offload_optimizer=True))
    if split.zero == 3 and not split.offload_parameters:
        yield Knob("deepspeed.offload_parameters=true", setting.with_split(offload_parameters=True))


def _weight_knobs(setting: Setting, stage: str) -> Iterator[Knob]:
    """Which weights learn, and how the others are stored."""
    full = getattr(setting.config, stage).tuning.method == "full"
    if setting.config.model.dtype == "float32" and not (stage == "ppo" and full):
        both = {"dtype": "bfloat16", "compute": "bfloat16"}
        yield Knob("model.dtype=bfloat16 model.compute=bfloat16", setting.with_section("model", **both))
    if full:
        lora = TuningConfig(method="lora", targets="all-linear")
        yield Knob(f"{stage}.tuning.method=lora", setting.with_section(stage, tuning=lora))


def _halves(size: int) -> Iterator[int]:
    while size % 2 == 0:
        size //= 2
        yield size


_WORTH = 0.97
"""A change that leaves more than this part of the peak is not proposed."""
_TURNS = 8


def remedy(setting: Setting, stage: str, memory: float) -> list[str] | None:
    """The change that makes a stage fit: one if one is enough, else several in order; None when all are not enough."""
    for knob in knobs(setting, stage):
        if knob.setting.peak(stage) <= memory:
            return [knob.change]
    turned: dict[str, str] = {}
    for _ in range(_TURNS):
        found = _cheapest(setting, stage, memory)
        if found is None:
            return None
        turned[found.kind], setting = found.change, found.setting
        if setting.peak(stage) <= memory:
            return list(turned.values())
    return None


def _cheapest(setting: Setting, stage: str, memory: float) -> Knob | None:
    """The first change that fits, else the first that is worth it, taken as far as it goes."""
    before, best = setting.peak(stage), None
    for knob in knobs(setting, stage):
        after = knob.setting.peak(stage)
        if after <= memory:
            return knob
        further = best is not None and best.kind == knob.kind and after < best.setting.peak(stage)
        if after < _WORTH * before and (best is None or further):
            best = knob
    return best
