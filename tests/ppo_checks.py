"""What the tests of the PPO trainer share: small trainers, and bit-equality of what they leave."""

from typing import Any

from torch import Tensor, equal, nn

from stages.ppo.experience import Experience
from tests.ppo_toys import Toy, gpt2_trainer, structured, tabular_trainer

SMALL = {"rollout_batch_size": 24, "minibatch_size": 12, "microbatch_size": 12, "steps": 4}


def small_tabular(seed: int = 0, **config: Any) -> Toy:
    return tabular_trainer(seed, **SMALL | config)


def small_gpt2(seed: int = 0, **config: Any) -> Toy:
    return gpt2_trainer(structured(6, 3, seed=0), 6, seed, **SMALL | config)


def experience_of(toy: Toy) -> Experience:
    """The evaluated rollout of the next iteration."""
    batch = toy.batch()
    rollout = toy.trainer.sampler(toy.policy, batch.ids, batch.episodes)
    return toy.trainer.evaluate(rollout, batch)[0]


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(a: Any, b: Any) -> bool:
    """Bit-equality of trees of tensors and numbers."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return equal(a, b) if isinstance(a, Tensor) else a == b


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics without those that a clock gives."""
    return {name: x for name, x in metrics.items() if not name.startswith("time/") and "per_second" not in name}
