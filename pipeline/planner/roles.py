"""Who lies in memory in each stage: trained roles, frozen ones, and the base that adapters share. Imports no torch.

It follows stages/models/roles.py: full fine-tuning gives every role whole weights of its own; with any PEFT type the
roles that stand on one base hold it together, and each adds an adapter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.config import PipelineConfig
from pipeline.parents import needs_reward_model, other_reward_models
from pipeline.planner.activations import Precision
from pipeline.planner.architecture import Architecture
from pipeline.planner.reading import architecture_of
from pipeline.planner.tuned import trained_numbers
from stages.base import InputError
from stages.models.classifier_facts import is_foreign
from stages.models.config import ModelConfig, TuningConfig

STORED = {"float32": 4, "bfloat16": 2, "float16": 2}
_NF4 = 4.127 / 8
"""Bytes of a 4-bit weight with its share of the constants of its block (arXiv 2305.14314, section 3)."""


@dataclass(frozen=True)
class Role:
    """One model of a stage, or the base under several."""

    name: str
    architecture: Architecture
    tuning: TuningConfig | None = None
    """None: it does not learn."""
    trained: int = 0
    """float32 numbers that the optimizer changes."""
    frozen: float = 0.0
    """Bytes of weights that never change and that nobody else has."""
    shared: float = 0.0
    """Bytes of weights of a base that it computes with and that stands on its own line."""
    averaged: bool = False
    """An exponential average of the trained numbers is kept."""

    @property
    def read(self) -> float:
        """Bytes of weights that a forward pass needs."""
        return 4 * self.trained + self.frozen + self.shared

    @property
    def whole(self) -> bool:
        """Whether all its weights learn."""
        return self.tuning is not None and self.tuning.method == "full"


@dataclass(frozen=True)
class Cast:
    """The roles of one stage by their part; `bases` are weights that several share."""

    bases: tuple[Role, ...]
    learners: tuple[Role, ...]
    frozen: tuple[Role, ...] = ()

    @property
    def everyone(self) -> tuple[Role, ...]:
        return (*self.bases, *self.learners, *self.frozen)


def frozen_bytes(a: Architecture, model: ModelConfig, scalar: bool = False) -> float:
    """Bytes of whole weights that do not learn: in model.dtype, or the layers' matrices in four bits."""
    stored, numbers = STORED[model.dtype], a.scalar_parameters if scalar else a.parameters
    if model.quantization == "none" or scalar:
        return stored * numbers
    return _NF4 * a.matrix_parameters + stored * (numbers - a.matrix_parameters)


def precision_of(role: Role, model: ModelConfig) -> Precision:
    """Types of a role: whole trained weights are float32, others as they are stored."""
    compute = STORED[model.compute]
    stored = 4 if role.whole else STORED[model.dtype]
    return Precision(stored, stored, compute)


def cast_of(config: PipelineConfig, stage: str, sharing: bool = True) -> Cast:
    """The roles of a stage; without `sharing` each has its whole base. Raises InputError as `architecture_of`."""
    cast = {"sft": _sft, "reward_model": _reward_model, "ppo": _ppo}[stage](config)
    return cast if sharing else Cast((), tuple(map(_apart, cast.learners)), tuple(map(_apart, cast.frozen)))


def _apart(role: Role) -> Role:
    return replace(role, frozen=role.frozen + role.shared, shared=0.0)


class _Bases:
    """Frozen weights by where they come from, each once, with the roles that stand on them."""

    def __init__(self, config: PipelineConfig):
        self._config = config
        self._users: dict[str, list[str]] = {}
        self._models: dict[str, tuple[Architecture, bool]] = {}

    def stand_on(self, base: str, user: str, a: Architecture, scalar: bool = False) -> float:
        """Bytes of a base, which from here on has this user too."""
        self._users.setdefault(base, []).append(user)
        self._models[base] = (a, scalar)
        return frozen_bytes(a, self._config.model, scalar)

    def roles(self) -> Iterator[Role]:
        """A line for each base that more than one role stands on."""
        for base, users in self._users.items():
            a, scalar = self._models[base]
            if len(users) > 1:
                yield Role(f"base of {', '.join(users)}", a, frozen=frozen_bytes(a, self._config.model, scalar))

    def settled(self, role: Role) -> Role:
        """The role; a base that it alone stands on is its own."""
        alone = any(users == [role.name] for users in self._users.values())
        return _apart(role) if alone else role

    def cast(self, learners: Sequence[Role], frozen: Sequence[Role] = ()) -> Cast:
        return Cast(tuple(self.roles()), tuple(map(self.settled, learners)), tuple(map(self.settled, frozen)))


def _start(config: PipelineConfig, tuning: TuningConfig) -> str:
    """Where the frozen weights below a stage's adapter come from: equal names mean the same tensors."""
    if not config.sft.enabled:
        return config.model.path
    if config.sft.tuning.method == "full":
        return "sft"
    return config.model.path if tuning.continues(config.sft.tuning) else "sft, merged"


def _learner(name: str, a: Architecture, tuning: TuningConfig, config: PipelineConfig, head: bool, base: float) -> Role:
    """A role that learns whole, or an adapter (and perhaps a head, H) over a base of so many bytes."""
    if tuning.method == "full":
        return Role(name, a, tuning, trained=a.scalar_parameters if head else a.parameters)
    trained = trained_numbers(a, tuning, config.trunk.frozen_layers) + a.hidden * head
    return Role(name, a, tuning, trained=trained, shared=base)


def _sft(config: PipelineConfig) -> Cast:
    a, tuning, bases = architecture_of(config.model.path), config.sft.tuning, _Bases(config)
    base = 0.0 if tuning.method == "full" else bases.stand_on(config.model.path, "policy", a)
    return bases.cast([_learner("policy", a, tuning, config, False, base)])


def _reward_architecture(config: PipelineConfig) -> Architecture:
    return architecture_of(config.reward_model.path or config.model.path)


def _reward_model(config: PipelineConfig) -> Cast:
    a, tuning, bases = _reward_architecture(config), config.reward_model.tuning, _Bases(config)
    base = 0.0 if tuning.method == "full" else bases.stand_on("start", "reward model", a)
    return bases.cast([_learner("reward model", a, tuning, config, True, base)])


def _ppo(config: PipelineConfig) -> Cast:
    """Policy and value model learn; the reference and the reward models do not."""
    a, tuning, bases = architecture_of(config.model.path), config.ppo.tuning, _Bases(config)
    start = _start(config, tuning)
    base = 0.0 if tuning.method == "full" else bases.stand_on(start, "policy", a)
    policy = _learner("policy", a, tuning, config, False, base)
    policy = replace(policy, averaged=config.ppo.ema_decay is not None)
    below = bases.stand_on(start, "reference", a)
    adapted = config.sft.enabled and config.sft.tuning.method != "full" and start == config.model.path
    adapter = trained_numbers(a, config.sft.tuning, config.trunk.frozen_layers) if adapted else 0
    frozen = [Role("reference", a, frozen=4 * adapter, shared=below)]
    learned = needs_reward_model(config)
    value = _with_reward_model(config, bases, frozen) if learned else _value_of_policy(config, a, start, bases)
    for path in other_reward_models(config):
        try:
            other = architecture_of(path)
        except InputError:  # of a kind that is not known, such as an encoder: it is not counted
            if is_foreign(path):
                continue
            raise
        frozen.append(Role(f"reward model {path}", other, frozen=frozen_bytes(other, config.model, scalar=True)))
    return bases.cast([policy, value], frozen)


def _value_of_policy(config: PipelineConfig, a: Architecture, start: str, bases: _Bases) -> Role:
    tuning = config.ppo.tuning
    base = 0.0 if tuning.method == "full" else bases.stand_on(start, "value model", a)
    return _learner("value model", a, tuning, config, True, base)


def _with_reward_model(config: PipelineConfig, bases: _Bases, frozen: list[Role]) -> Role:
    """The value model that continues the run's (first) reward model; all of these are added to the frozen roles."""
    a, tuning = _reward_architecture(config), config.reward_model.tuning
    first, *others = ("reward model", *(f"reward model {i}" for i in range(2, config.reward_model.members + 1)))
    whole = frozen_bytes(a, config.model, scalar=True)
    if tuning.method != "full":
        start = config.reward_model.path or _start(config, tuning)
        below = [bases.stand_on(start, name, a) for name in (first, *others, "value model")][0]
        value = _learner("value model", a, tuning, config, True, below)
        frozen += [Role(name, a, frozen=4 * value.trained, shared=below) for name in (first, *others)]
        return value
    if config.ppo.tuning.method == "full":
        frozen += [Role(name, a, frozen=whole) for name in (first, *others)]
        return _learner("value model", a, config.ppo.tuning, config, True, 0.0)
    below = bases.stand_on("reward_model", first, a, scalar=True)
    bases.stand_on("reward_model", "value model", a, scalar=True)
    frozen += [Role(first, a, shared=below), *(Role(name, a, frozen=whole) for name in others)]
    return _learner("value model", a, config.ppo.tuning, config, True, below)
