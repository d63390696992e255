"""Bytes sent and seconds taken by one step of each stage on one rank. Imports no torch.

A step is an optimizer step of SFT and reward model, and an iteration of PPO. Sequences are as long as they may be, so
these are upper bounds for the given device; sending is not hidden behind computing and not added to it either.
"""

from dataclasses import dataclass

from pipeline.config import PipelineConfig
from pipeline.planner.activations import Precision, cache_per_token
from pipeline.planner.costs import Device, forward_operations, output_operations
from pipeline.planner.memory import longest, replayed, rollout_rows, rows_per_step
from pipeline.planner.roles import Cast, Role, precision_of
from pipeline.planner.sharding import Split, sent_by_reading, sent_by_training


@dataclass(frozen=True)
class StageWork:
    """One step of a stage on one rank."""

    sent_by: dict[str, float]
    """Bytes by phase."""
    seconds: dict[str, float]
    """By phase."""

    @property
    def sent(self) -> float:
        """Bytes."""
        return sum(self.sent_by.values())

    @property
    def total(self) -> float:
        """Seconds."""
        return sum(self.seconds.values())


def stage_work(config: PipelineConfig, stage: str, cast: Cast, split: Split, device: Device) -> StageWork:
    """What one step of a stage sends and takes."""
    if stage == "ppo":
        return StageWork(_ppo_sent(config, cast, split), _ppo_seconds(config, cast, split, device))
    (role,), section = cast.learners, getattr(config, stage)
    rows = rows_per_step(config, stage, split)
    passes = -(-rows // section.microbatch_size)
    tokens = rows * (2 if stage == "reward_model" else 1) * longest(section)
    operations = _learning_operations(config, stage, role, tokens, 0)
    if stage == "sft":
        operations += output_operations(role.architecture, tokens) * (4 if role.whole else 3)  # tiles are made twice
    seconds = {"training": device.arithmetic(operations, config.model.compute)}
    sent = {"training": sent_by_training(role.trained, role.frozen + role.shared, split, passes)}
    return StageWork(sent, seconds)


def _learning_operations(config: PipelineConfig, stage: str, role: Role, tokens: float, replay: int) -> float:
    """Forward and backward pass through the layers: 3 forward passes, or 2 where few weights learn.

    Nothing goes backward below the trunk; nor forward where `replay` layers are. Recomputing adds a forward pass.
    """
    a, section, length = role.architecture, getattr(config, stage), longest(getattr(config, stage))
    above = a.layers - config.trunk.frozen_layers
    backward = (2 if role.whole else 1) + section.gradient_checkpointing
    first = forward_operations(a, tokens, length, a.layers - replay)
    return first + backward * forward_operations(a, tokens, length, above)


def _ppo_sent(config: PipelineConfig, cast: Cast, split: Split) -> dict[str, float]:
    """Every minibatch of every epoch for the two that learn; under stage 3 scoring passes and rollouts too."""
    ppo, policy = config.ppo, cast.learners[0]
    passes = -(-rows_per_step(config, "ppo", split) // ppo.microbatch_size)
    steps = ppo.ppo_epochs * (ppo.rollout_batch_size // ppo.minibatch_size)
    learning = sum(
        steps * sent_by_training(role.trained, role.frozen + role.shared, split, passes) for role in cast.learners
    )
    scoring = -(-rollout_rows(config, split) // ppo.microbatch_size)
    reading = sum(sent_by_reading(role.read, split, scoring) for role in (*cast.learners, *cast.frozen))
    rollout = sent_by_reading(policy.read, split, 1 if split.gather_for_rollouts else ppo.max_new_tokens)
    return {"rollout": rollout, "scoring": reading, "training": learning}


def _ppo_seconds(config: PipelineConfig, cast: Cast, split: Split, device: Device) -> dict[str, float]:
    ppo, policy = config.ppo, cast.learners[0]
    rows, length = rollout_rows(config, split), longest(ppo)
    tokens, frozen = rows * length, replayed(config, split)
    a = policy.architecture
    prompts = forward_operations(a, tokens - rows * ppo.max_new_tokens, length) + output_operations(a, rows)
    roles = (*cast.learners, *cast.frozen)
    scoring = sum(forward_operations(r.architecture, tokens, length, r.architecture.layers - frozen) for r in roles)
    scoring += forward_operations(a, tokens, length, frozen)  # the trunk is computed once for all of them
    logits = output_operations(a, rows * ppo.max_new_tokens)
    learning = sum(_learning_operations(config, "ppo", role, tokens, frozen) for role in cast.learners)
    learning += logits * (4 if policy.whole else 3)
    return {
        "prompts": device.arithmetic(prompts, config.model.compute),
        "decoding": decoding_seconds(policy, config, split, device),
        "scoring": device.arithmetic(scoring + 2 * logits, config.model.compute),
        "training": device.arithmetic(ppo.ppo_epochs * learning, config.model.compute),
    }


def decoding_seconds(policy: Role, config: PipelineConfig, split: Split, device: Device) -> float:
    """Seconds for max_new_tokens tokens of a rank's sequences: per token the longer of reading and computing.

    All weights and the cache of every sequence, at its mean length, are read once per token.
    """
    ppo, a, p, rows = config.ppo, policy.architecture, precision_of(policy, config.model), rollout_rows(config, split)
    weights = (a.matrix_parameters + a.vocabulary * a.hidden) * bytes_read(policy, p, split)
    mean = longest(ppo) - ppo.max_new_tokens / 2
    kept = rows * mean * a.layers * cache_per_token(a, p)
    operations = forward_operations(a, rows, round(mean)) + output_operations(a, rows)
    token = max(device.reading(weights + kept), device.arithmetic(operations, config.model.compute))
    return ppo.max_new_tokens * token


def bytes_read(policy: Role, p: Precision, split: Split) -> float:
    """Bytes that move per weight and decoded token.

    Autocast keeps its copies of weights that learn, but under ZeRO-3; of other float32 weights it makes one for every
    token, reading four bytes, writing two and reading these.
    """
    if not p.casts:
        return p.stored
    return p.compute if policy.whole and split.zero < 3 else p.stored + 2 * p.compute
