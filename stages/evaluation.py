"""The final evaluation: base, SFT and PPO policy on the same held-out prompts, by the reward and by a judge."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from reward.base import RewardUnavailable
from reward.calls import TrainerState
from reward.config import RewardTerm
from stages.base import StageContext
from stages.models.config import NO_FROZEN_LAYERS, ModelConfig, TrunkConfig
from stages.models.heads import PolicyModel
from stages.models.load import source_of
from stages.ppo.builder import PPOBuilder
from stages.ppo.config import PPOConfig
from stages.ppo.evaluation import Completions, Estimate, Evaluator, distinct_2
from stages.ppo.foreign_reward import FILE, Centring
from stages.ppo.held_out import EVALUATION_SEED
from stages.ppo.judging import SUCCESS, Judge
from stages.ppo.prompts import PromptBatch, PromptSet
from stages.ppo.reward_scales import read_scales
from stages.ppo.rewards import RewardServices, waiting_in
from stages.quiet import quiet_libraries

Table = dict[str, dict[str, dict[str, float]]]


class EvaluationSettings(Protocol):
    """The section of the config that this module reads."""

    prompts: int
    judge: str | None
    batch_size: int


def run_evaluation(
    config: EvaluationSettings,
    ppo: PPOConfig,
    model: ModelConfig,
    prompts: Path,
    terms: list[RewardTerm],
    sft: Path | None,
    policy: Path | None,
    reward_model: Path | None,
    context: StageContext,
    trunk: TrunkConfig = NO_FROZEN_LAYERS,
    shown: Sequence[Mapping[str, Any]] = (),
) -> Table:
    """Metrics of each policy that exists: {"base" | "sft" | "ppo": {metric: {"value", "standard_error", "n"}}}.

    KL is measured to the SFT model. The prompts follow those by which PPO chose its best policy, where the file
    has enough rows, so that the choice does not flatter the result. Reward models of others are centred as PPO did,
    else on the demonstrations `shown`. Raises Interrupted when asked to stop.
    """
    quiet_libraries()
    services = RewardServices(waiting_in(context), Centring(policy.parent / FILE if policy else None, shown))
    builder = PPOBuilder(ppo, model, terms, sft, reward_model, context.seed, trunk, services)
    builder.roles.trust(policy)
    sources = {
        "base": source_of(model.path),
        "sft": builder.start if sft else None,
        "ppo": source_of(policy) if policy else None,
    }
    policies = {
        name: builder.neutral(builder.roles.reference(source)).requires_grad_(False)
        for name, source in sources.items()
        if source
    }
    reward, scorers = builder.rewards.mixture, builder.rewards.scorers
    if policy:
        read_scales(policy, reward)
    shared = builder.trunk(builder.reference_lm, [*policies.values(), *(s.classifier for s in scorers)])
    evaluator = Evaluator(
        builder.policy(builder.reference_lm),
        reward,
        builder.sampler(context.seed + 2 * EVALUATION_SEED),
        builder.renderer.decode,
        shared,
        config.batch_size,
        state=TrainerState(ppo.steps, ppo.steps),
    )
    batch = held_out_batch(builder.prompts(prompts), ppo.eval_prompts, config.prompts)
    table: Table = {}
    for name, lm in policies.items():
        context.stop.follow(0)
        context.pulse.enter("evaluation")
        completions = _completed(evaluator, builder.policy(lm), batch, context)
        table[name] = _measured(name, completions, config.judge, context)
        print(f"{name}: " + "  ".join(f"{k} {v['value']:.3f}" for k, v in table[name].items()), flush=True)
    return table


def _completed(evaluator: Evaluator, policy: PolicyModel, batch: PromptBatch, context: StageContext) -> Completions:
    try:
        return evaluator(policy, batch)
    except RewardUnavailable:
        context.stop.follow(0)  # a scoring server is not waited for any longer where the stage is to end
        raise


def _measured(name: str, completions: Completions, judge: str | None, context: StageContext) -> dict[str, Any]:
    """The metrics of one policy, whose completions are kept."""
    verdicts = judged(judge, completions)
    rows = [{"model": name, "index": i, **row} for i, row in enumerate(completions.rows())]
    context.tracker.samples([row | ({"judge": verdicts[i]} if verdicts else {}) for i, row in enumerate(rows)], 0)
    return {metric: vars(estimate) for metric, estimate in _estimates(completions, verdicts).items()}


def held_out_batch(held_out: PromptSet, skip: int, count: int) -> PromptBatch:
    """Prompts that follow the first `skip`, as far as there are enough of them."""
    return held_out.first(count, skip=max(0, min(skip, len(held_out) - count)))


def judged(judge: str | None, completions: Completions) -> list[float | None]:
    """What the judge says of each completion; nothing without one."""
    found = Judge.named(judge)
    return found(completions.texts) if found else []


def _estimates(completions: Completions, judged: list[float | None]) -> dict[str, Estimate]:
    """All metrics; distinct-2 is one number for all completions, its standard error by the jackknife over tenths."""
    estimates = completions.summary()
    if judged:
        estimates = {
            "judge": Estimate.of(torch.tensor([float(v > SUCCESS) for v in judged if v is not None])),
            **estimates,
        }
    texts = completions.texts.completions
    leave_out = torch.tensor(
        [distinct_2([t for i, t in enumerate(texts) if i % 10 != k]) for k in range(10)], dtype=torch.float64
    )
    error = float((0.9 * (leave_out - leave_out.mean()).square().sum()).sqrt())
    return estimates | {"distinct_2": Estimate(distinct_2(texts), error, len(texts))}
