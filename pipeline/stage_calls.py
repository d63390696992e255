"""From the config and the parents of a stage to its function's arguments. Imports no torch until a stage is called."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.config import PipelineConfig
from pipeline.lineage import StageInputs
from pipeline.parents import foreign_reward_models
from stages.base import StageContext, StageResult

# The stages' modules import torch, so each is imported only by the process that runs it.


def _run_sft(config: PipelineConfig, inputs: StageInputs, context: StageContext) -> StageResult:
    from stages.sft.stage import run_sft

    data = inputs.data
    return run_sft(
        config.sft,
        config.model,
        data["demonstrations.train"],
        data.get("demonstrations.eval"),
        context,
        config.trunk,
        config.deepspeed,
    )


def _run_reward_model(config: PipelineConfig, inputs: StageInputs, context: StageContext) -> StageResult:
    from stages.reward_model.stage import run_reward_model

    data = inputs.data
    return run_reward_model(
        config.reward_model,
        config.model,
        train=data["preferences.train"],
        eval=data.get("preferences.eval"),
        sft=inputs.parents.get("sft"),
        context=context,
        demonstrations=_demonstrations(config, data),
        trunk=config.trunk,
        deepspeed=config.deepspeed,
    )


def measure_reward_model(
    config: PipelineConfig, data: Mapping[str, Path], final: Path, sft: Path | None, folder: Path
) -> dict[str, Any]:
    """Measure the reward model in `final` on held-out pairs; write what is found into the stage's folder."""
    from stages.reward_model.evaluation import evaluate_reward_model
    from stages.reward_model.reporting import write_report

    report = evaluate_reward_model(
        config.reward_model,
        config.model,
        final,
        held_out=data["preferences.eval"],
        sft=sft,
        demonstrations=_demonstrations(config, data),
        seed=config.seed,
        trunk=config.trunk,
    )
    write_report(folder, report)
    return report


def _demonstrations(config: PipelineConfig, data: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The rows on which the reward model's scores are centred, if the run has such."""
    from stages.classification import read_sft_rows

    shown = next((path for role, path in data.items() if role.startswith("demonstrations")), None)
    return read_sft_rows(shown, config.sft) if shown else []


def _run_ppo(config: PipelineConfig, inputs: StageInputs, context: StageContext) -> StageResult:
    from stages.ppo.judging import Judge
    from stages.ppo.stage import run_ppo

    return run_ppo(
        config.ppo,
        config.model,
        prompts=inputs.data["prompts.train"],
        eval_prompts=inputs.data.get("prompts.eval"),
        demonstrations=inputs.data.get("demonstrations.train"),
        shown=_shown(config, inputs),
        terms=config.reward,
        sft=inputs.parents.get("sft"),
        reward_model=inputs.parents.get("reward_model"),
        context=context,
        trunk=config.trunk,
        deepspeed=config.deepspeed,
        judge=Judge.named(config.evaluation.judge),
    )


def _shown(config: PipelineConfig, inputs: StageInputs) -> list[Mapping[str, Any]]:
    """Demonstrations that centre reward models of others, held-out ones where there are any."""
    from stages.classification import read_sft_rows

    files = [inputs.data.get(f"demonstrations.{part}") for part in ("eval", "train")]
    found = next(filter(None, files), None) if foreign_reward_models(config) else None
    return read_sft_rows(found, config.sft) if found else []


def run_evaluation(config: PipelineConfig, inputs: StageInputs, context: StageContext) -> dict[str, Any]:
    from stages import evaluation

    return evaluation.run_evaluation(
        config.evaluation,
        config.ppo,
        config.model,
        prompts=inputs.data["prompts.eval"],
        shown=_shown(config, inputs),
        terms=config.reward,
        sft=inputs.parents.get("sft"),
        policy=inputs.parents.get("ppo"),
        reward_model=inputs.parents.get("reward_model"),
        context=context,
        trunk=config.trunk,
    )


TRAINING: Mapping[str, Callable[[PipelineConfig, StageInputs, StageContext], StageResult]] = {
    "sft": _run_sft,
    "reward_model": _run_reward_model,
    "ppo": _run_ppo,
}
