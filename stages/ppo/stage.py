"""The PPO stage: builds the roles, walks the iterations, evaluates, keeps the best policy."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reward.calls import TrainerState
from reward.config import RewardTerm
from stages.base import StageContext, StageResult
from stages.deepspeed_config import DeepSpeedConfig
from stages.engine import TorchEngines
from stages.models.adapters import announce_parameters
from stages.models.config import NO_FROZEN_LAYERS, ModelConfig, TrunkConfig
from stages.ppo.builder import PPOBuilder
from stages.ppo.config import PPOConfig
from stages.ppo.evaluation import Evaluator
from stages.ppo.foreign_reward import FILE, Centring
from stages.ppo.held_out import EVALUATION_SEED, HeldOut
from stages.ppo.judging import Judge
from stages.ppo.loop import PPOLoop
from stages.ppo.rewards import RewardServices, waiting_in
from stages.quiet import quiet_libraries


def run_ppo(
    config: PPOConfig,
    model: ModelConfig,
    prompts: Path,
    eval_prompts: Path | None,
    demonstrations: Path | None,
    terms: list[RewardTerm],
    sft: Path | None,
    reward_model: Path | None,
    context: StageContext,
    trunk: TrunkConfig = NO_FROZEN_LAYERS,
    deepspeed: DeepSpeedConfig | None = None,
    judge: Judge | None = None,
    shown: Sequence[Mapping[str, Any]] = (),
) -> StageResult:
    """Train the SFT model by PPO on the reward terms and write the best policy to `context.folder / "final"`.

    `judge` is asked about the held-out completions; nothing is trained on it. Reward models of others are centred on
    the demonstrations `shown`.
    """
    quiet_libraries()
    engines = _engines(deepspeed, model.compute, context)
    services = RewardServices(waiting_in(context), Centring(context.folder / FILE, shown, context.world))
    builder = PPOBuilder(config, model, terms, sft, reward_model, context.seed, trunk, services, engines)
    trainer = replace(builder.trainer(demonstrations), enter=context.pulse.enter)
    counts = announce_parameters("ppo", builder.policy_lm)
    evaluator = Evaluator(
        trainer.reference,
        trainer.reward,
        builder.sampler(context.seed + EVALUATION_SEED),
        builder.renderer.decode,
        trainer.trunk,
        config.rollout_batch_size,
        context.world,
        TrainerState(config.steps, config.steps),
    )
    shown = builder.prompts(eval_prompts) if eval_prompts else None
    held_out = HeldOut(trainer, shown, evaluator, context, builder.publish, judge)
    loop = PPOLoop(trainer, builder.prompts(prompts), held_out, context, model.compute)
    return replace(loop.run(), details=counts)


def _engines(deepspeed: DeepSpeedConfig | None, compute: str, context: StageContext) -> TorchEngines:
    """DeepSpeed where the config or the number of ranks asks for it; without, it is not even imported."""
    if deepspeed is None and context.world.alone:
        return TorchEngines(compute=compute)
    from stages.deepspeed_engine import DeepSpeedEngines

    return DeepSpeedEngines(context.world, compute, deepspeed or DeepSpeedConfig())
