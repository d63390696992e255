"""Memory of each stage on one rank: what stays, and what comes and goes phase by phase. Bytes; imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.config import PipelineConfig
from pipeline.planner.activations import Batch, Precision, cache, copied_weights, saved, working
from pipeline.planner.architecture import Architecture
from pipeline.planner.roles import Cast, Role, precision_of
from pipeline.planner.sharding import FLOAT, Share, Split, gathered, in_flight, share
from stages.ppo.config import PPOConfig
from stages.trainer_config import TrainerConfig

Section = TrainerConfig | PPOConfig
_PPO_TILE, _SFT_TILE = 512, 4096
"""Tokens whose logits exist at a time: CHUNK_TOKENS of stages/models/heads.py, TOKEN_CHUNK_SIZE of TRL."""
_SFT_VOCABULARY = 32768
"""Columns of a tile of TRL's fused output layer, at most."""
_SAMPLER = 6
"""float32 tensors [B, V] that drawing a token needs (stages/rollout.py: InverseCDF)."""


@dataclass(frozen=True)
class Row:
    """One role of a stage: what it keeps, and what its forward and backward pass takes beside that."""

    role: Role
    share: Share
    activations: float = 0.0


@dataclass(frozen=True)
class Phase:
    """Part of a step that needs memory of its own, by what for."""

    name: str
    parts: dict[str, float]
    gradients: bool = False
    """Whether gradients exist meanwhile."""

    @property
    def bytes(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class StageMemory:
    """One stage on one rank."""

    stage: str
    rows: tuple[Row, ...]
    phases: tuple[Phase, ...]

    def at(self, phase: Phase) -> float:
        """Bytes held in a phase."""
        kept = sum(r.share.weights + r.share.optimizer + r.share.gradients * phase.gradients for r in self.rows)
        return kept + phase.bytes

    @property
    def worst(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=self.at)

    @property
    def peak(self) -> float:
        return self.at(self.worst)

    @property
    def host(self) -> float:
        """Bytes in the host's memory for this rank."""
        return sum(row.share.host for row in self.rows)


def stage_memory(config: PipelineConfig, stage: str, cast: Cast, split: Split) -> StageMemory:
    """What a stage takes on one rank at its configured sizes, all sequences as long as they may be."""
    phases = tuple(_ppo(config, cast, split) if stage == "ppo" else _supervised(config, stage, cast, split))
    learning = {phase.name: phase.bytes for phase in phases}
    rows = tuple(_row(role, split, learning.get(f"{role.name} learns", 0.0)) for role in cast.everyone)
    return StageMemory(stage, rows, phases)


def _row(role: Role, split: Split, activations: float) -> Row:
    kept = share(role.trained, role.frozen, split)
    if role.averaged:  # an average is kept whole on every rank
        kept = replace(kept, optimizer=kept.optimizer + FLOAT * role.trained)
    return Row(role, kept, activations)


def rows_per_step(config: PipelineConfig, stage: str, split: Split) -> int:
    """Sequences, pairs or completions of an optimizer step that one rank has."""
    section: Section = getattr(config, stage)
    return -(-(section.minibatch_size if stage == "ppo" else section.batch_size) // split.ranks)


def microbatch(config: PipelineConfig, stage: str, split: Split) -> Batch:
    """Sequences of one forward pass on one rank; a pair is two."""
    section: Section = getattr(config, stage)
    rows = min(section.microbatch_size, rows_per_step(config, stage, split))
    return Batch(rows * (2 if stage == "reward_model" else 1), longest(section))


def longest(section: Section) -> int:
    """Tokens of the longest sequence, virtual ones included."""
    own = section.tuning.virtual_tokens if section.tuning.uses_virtual_tokens else 0
    if isinstance(section, PPOConfig):
        return own + section.max_prompt_tokens + section.max_new_tokens
    return own + section.max_length


def rollout_rows(config: PipelineConfig, split: Split) -> int:
    """Completions that one rank samples at once."""
    return -(-config.ppo.rollout_batch_size // split.ranks)


def _supervised(config: PipelineConfig, stage: str, cast: Cast, split: Split) -> Iterator[Phase]:
    (role,), batch = cast.learners, microbatch(config, stage, split)
    p = precision_of(role, config.model)
    logits = _sft_logits(role, p, batch) if stage == "sft" else FLOAT * batch.tokens
    yield _learning(role, config, stage, split, logits)
    yield from _update(role, split)
    if stage == "reward_model" and role.whole:
        saved_models = config.reward_model.members * role.architecture.scalar_parameters
        again = {"the saved model, scored": p.stored * saved_models}
        yield Phase("statistics", again | {"activations": working(role.architecture, p, batch)})


def _ppo(config: PipelineConfig, cast: Cast, split: Split) -> Iterator[Phase]:
    policy, value = cast.learners
    everyone = [*cast.learners, *cast.frozen]
    states = _trunk_states(config, policy, split)
    yield from _rollout(config, policy, split)
    a, p, batch = policy.architecture, precision_of(policy, config.model), microbatch(config, "ppo", split)
    scoring = max(working(r.architecture, precision_of(r, config.model), batch) for r in everyone)
    copies = max(_copies_read(r, precision_of(r, config.model), split) for r in everyone)
    flight = max(in_flight(0, r.read, split) for r in everyone)
    logits = _ppo_logits(a, p, batch)
    parts = {"activations": scoring, "logits": logits, "copies of weights": copies, "in flight": flight}
    yield Phase("scoring", parts | states)
    yield _learning(policy, config, "ppo", split, logits, states)
    yield _learning(value, config, "ppo", split, 0.0, states)
    for role in cast.learners:
        yield from _update(role, split)


def _learning(
    role: Role, config: PipelineConfig, stage: str, split: Split, logits: float, states: dict[str, float] | None = None
) -> Phase:
    """Forward and backward pass of one microbatch."""
    section: Section = getattr(config, stage)
    a, p, batch, frozen = (
        role.architecture,
        precision_of(role, config.model),
        microbatch(config, stage, split),
        _below(config),
    )
    recompute = section.gradient_checkpointing
    parts = {
        "activations": saved(a, role.tuning, p, batch, frozen, recompute) + 3 * FLOAT * a.hidden * batch.tokens,
        "gradients of a layer": working(a, p, batch),
        "copies of weights": copied_weights(a, role.tuning, p, frozen, recompute) if split.zero < 3 else _copy(a, p),
        "logits": logits,
        "in flight": in_flight(role.trained, role.read, split),
    }
    return Phase(f"{role.name} learns", parts | (states or {}), gradients=True)


def _update(role: Role, split: Split) -> Iterator[Phase]:
    """AdamW over all weights at once, as on an accelerator, takes one more number for each that this rank updates."""
    if not split.offload_optimizer:
        taken = FLOAT * role.trained / (split.ranks if split.zero else 1)
        yield Phase(f"update of {role.name}", {"AdamW's denominators": taken}, gradients=True)


def _rollout(config: PipelineConfig, policy: Role, split: Split) -> Iterator[Phase]:
    """The prompts' forward pass, then the last token, when the cache is longest."""
    ppo, a, p = config.ppo, policy.architecture, precision_of(policy, config.model)
    rows, length = rollout_rows(config, split), longest(config.ppo)
    prompts = Batch(rows, length - ppo.max_new_tokens)
    whole = gathered(policy.read, split) if split.gather_for_rollouts else in_flight(0, policy.read, split)
    weights = {"gathered weights": whole, "copies of weights": _copies_read(policy, p, split)}
    reading = {"KV cache": cache(a, p, prompts), "activations": working(a, p, prompts)}
    yield Phase("rollout, prompts", reading | weights)
    drawing = {"KV cache": cache(a, p, Batch(rows, length)), "logits": _SAMPLER * FLOAT * rows * a.vocabulary}
    yield Phase("rollout, last token", drawing | weights)


def _copies_read(role: Role, p: Precision, split: Split) -> float:
    """Autocast's copies in a forward pass without gradients: of all weights that learn, else of a matrix at a time.

    It keeps the former until the end of the forward pass, or of the rollout; under ZeRO-3 DeepSpeed's own linear
    function keeps none, in no pass.
    """
    a = role.architecture
    if not role.whole or split.zero == 3:
        return _copy(a, p)
    return p.compute * (a.matrix_parameters + a.vocabulary * a.hidden) if p.casts else 0.0


def _copy(a: Architecture, p: Precision) -> float:
    """Autocast's copy of the largest matrix."""
    return p.compute * a.hidden * max(a.vocabulary, a.intermediate) if p.casts else 0.0


def _ppo_logits(a: Architecture, p: Precision, batch: Batch) -> float:
    """Logits of a chunk as they come, in float32, their log-softmax, and gradients of the last two."""
    return min(_PPO_TILE, batch.tokens) * a.vocabulary * (2 * p.compute + 3 * FLOAT)


def _sft_logits(role: Role, p: Precision, batch: Batch) -> float:
    """A tile of TRL's fused output layer with its float32 copies, and the gradients of what it reads."""
    a = role.architecture
    tile = min(_SFT_TILE, batch.tokens) * min(_SFT_VOCABULARY, a.vocabulary) * (p.compute + 2 * FLOAT)
    return tile + FLOAT * a.hidden * (batch.tokens + (a.vocabulary if role.whole else 0))


def _below(config: PipelineConfig) -> int:
    return config.trunk.frozen_layers


def replayed(config: PipelineConfig, split: Split) -> int:
    """Frozen layers that PPO computes once for all roles: none where the roles share no layers."""
    return config.trunk.frozen_layers if split.shares_bases else 0


def _trunk_states(config: PipelineConfig, policy: Role, split: Split) -> dict[str, float]:
    """What leaves the frozen layers, kept for a whole rollout."""
    if not replayed(config, split):
        return {}
    tokens = rollout_rows(config, split) * longest(config.ppo)
    return {"frozen trunk's states": tokens * policy.architecture.hidden * precision_of(policy, config.model).stream}
