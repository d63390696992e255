"""The sizes of each stage before it runs: batches, steps, tokens. Exact arithmetic; imports no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rich.table import Table

from pipeline.config import PipelineConfig
from stages.base import InputError
from stages.batch_split import split_batch
from stages.ppo.config import PPOConfig
from stages.trainer_config import TrainerConfig

TRAINING_ROWS = {"sft": "demonstrations.train", "reward_model": "preferences.train", "ppo": "prompts.train"}


@dataclass(frozen=True)
class StagePlan:
    """Sizes of one stage; None where they depend on the data."""

    stage: str
    unit: str
    """What is counted: sequences, pairs or completions."""
    rows: int | None
    rollout: int | None
    minibatch: int
    microbatch: int
    steps: int | None
    """Optimizer steps of SFT and reward model, iterations of PPO."""
    optimizer_steps: int | None
    tokens_per_step: int
    """Upper bound."""
    ranks: int = 1

    @property
    def forward(self) -> int:
        """Rows of one forward pass: `microbatch`, or a rank's whole share of the batch if that is less."""
        return min(self.microbatch, max(1, self.minibatch // self.ranks))

    @property
    def accumulation(self) -> int:
        """Forward passes of each rank per optimizer step."""
        return self.minibatch // (self.forward * self.ranks)

    @property
    def tokens(self) -> int | None:
        """Upper bound over the whole stage."""
        return None if self.steps is None else self.steps * self.tokens_per_step


def plan(config: PipelineConfig, rows: Mapping[str, int], ranks: int = 1) -> list[StagePlan]:
    """The plan of every enabled stage; `rows` counts the data by role as far as it is known."""
    known = {stage: rows.get(role) for stage, role in TRAINING_ROWS.items()}
    plans = []
    if config.sft.enabled:
        plans.append(_supervised("sft", "sequences", config.sft, known["sft"], config.sft.max_length))
    if config.reward_model.enabled:
        length = 2 * config.reward_model.max_length
        plans.append(_supervised("reward_model", "pairs", config.reward_model, known["reward_model"], length))
    if config.ppo.enabled:
        plans.append(_ppo(config.ppo, known["ppo"]))
    return [replace(stage_plan, ranks=ranks) for stage_plan in plans]


def batch_errors(config: PipelineConfig, rows: Mapping[str, int], ranks: int = 1) -> list[InputError]:
    """BATCH01: fewer rows than a batch. BATCH02: a batch that does not divide into ranks and forward passes."""
    errors = []
    for stage in ("sft", "reward_model"):
        section = getattr(config, stage)
        batch, part, count = section.batch_size, section.microbatch_size, rows.get(TRAINING_ROWS[stage])
        if not section.enabled:
            continue
        if batch % part:
            problem = f"{stage}.batch_size {batch} is not a multiple of {stage}.microbatch_size {part}"
            divisor = max(d for d in range(1, part + 1) if batch % d == 0)
            errors.append(InputError("BATCH02", problem, fix=f"{stage}.microbatch_size={divisor}"))
        elif ranks > 1:
            errors += _unshared(stage, batch, part, ranks)
        if count is not None and count < batch:
            problem = f"data.{TRAINING_ROWS[stage]} has {count} rows, fewer than {stage}.batch_size {batch}"
            fix = f"add rows, or {stage}.batch_size={count} {stage}.microbatch_size={count}"
            errors.append(InputError("BATCH01", problem, fix=fix))
    return errors


def _unshared(stage: str, batch: int, part: int, ranks: int) -> list[InputError]:
    try:
        split_batch(stage, batch, part, ranks)
    except InputError as error:
        return [error]
    return []


def table(plans: list[StagePlan]) -> Table:
    """The plan with one column per stage; token counts are upper bounds."""
    result = Table(title="Batch plan")
    result.add_column("")
    for stage_plan in plans:
        result.add_column(f"{stage_plan.stage}\n({stage_plan.unit})", justify="right")
    quantities = {
        "data rows": "rows",
        "rollout": "rollout",
        "minibatch (optimizer step)": "minibatch",
        "ranks": "ranks",
        "microbatch (forward pass)": "forward",
        "accumulation": "accumulation",
        "steps": "steps",
        "optimizer steps": "optimizer_steps",
        "tokens per step, at most": "tokens_per_step",
        "tokens, at most": "tokens",
    }
    for title, name in quantities.items():
        result.add_row(title, *(_cell(getattr(stage_plan, name)) for stage_plan in plans))
    return result


def _supervised(stage: str, unit: str, section: TrainerConfig, rows: int | None, row_tokens: int) -> StagePlan:
    steps = section.max_steps
    packed = getattr(section, "packing", False)
    if steps is None and rows is not None and not packed:
        steps = math.ceil(section.epochs * math.ceil(rows / section.batch_size))
    return StagePlan(
        stage=stage,
        unit=unit,
        rows=rows,
        rollout=None,
        minibatch=section.batch_size,
        microbatch=section.microbatch_size,
        steps=steps,
        optimizer_steps=steps,
        tokens_per_step=section.batch_size * row_tokens,
    )


def _ppo(section: PPOConfig, rows: int | None) -> StagePlan:
    return StagePlan(
        stage="ppo",
        unit="completions",
        rows=rows,
        rollout=section.rollout_batch_size,
        minibatch=section.minibatch_size,
        microbatch=section.microbatch_size,
        steps=section.steps,
        optimizer_steps=section.optimizer_steps,
        tokens_per_step=section.rollout_batch_size * (section.max_prompt_tokens + section.max_new_tokens),
    )


def _cell(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"
