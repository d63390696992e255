"""A trainer's state on disk is all that its future depends on."""

from pathlib import Path
from typing import Any

import pytest

from stages.ppo.state import load_state, save_state
from tests.ppo_checks import same, small_gpt2, timeless
from tests.ppo_toys import Toy

EVERYTHING = {
    "kl_controller": "adaptive",
    "kl_target": 0.05,
    "kl_horizon": 200,
    "score_normalisation": "running",
    "missing_eos": {"mode": "replace", "value": -1.0},
    "ema_decay": 0.9,
    "ptx_coef": 0.5,
    "ptx_batch_size": 2,
}
COMPONENTS = [("finished",), ("kl",), ("moments",), ("ptx",), ("ema",)] + [
    (role, part) for role in ("policy", "value") for part in ("weights", "optimizer", "scheduler")
]


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Toy, Path]:
    """A trainer after two iterations, and its state."""
    toy = small_gpt2(**EVERYTHING)
    toy.run(2)
    save_state(tmp_path, toy.trainer.state_dict())
    return toy, tmp_path


def future(toy: Toy) -> tuple[list[dict[str, float]], dict[str, Any]]:
    metrics = [timeless(step.metrics) for step in toy.run(2)]
    return metrics, toy.trainer.state_dict()


def test_a_resumed_trainer_goes_on_as_if_never_stopped_bit_for_bit(saved: tuple[Toy, Path]) -> None:
    toy, folder = saved
    resumed = small_gpt2(**EVERYTHING)
    resumed.trainer.load_state_dict(load_state(folder))
    (metrics, state), (resumed_metrics, resumed_state) = future(toy), future(resumed)
    assert resumed_metrics == metrics
    assert same(resumed_state, state)


def test_the_reference_of_a_resumed_trainer_is_still_the_start(saved: tuple[Toy, Path]) -> None:
    resumed, fresh = small_gpt2(**EVERYTHING), small_gpt2(**EVERYTHING)
    resumed.trainer.load_state_dict(load_state(saved[1]))
    assert same(resumed.trainer.reference.state_dict(), fresh.trainer.reference.state_dict())
    assert not same(resumed.trainer.policy.module.state_dict(), fresh.trainer.policy.module.state_dict())


@pytest.mark.parametrize("missing", COMPONENTS, ids="/".join)
def test_no_component_of_the_state_is_dispensable(saved: tuple[Toy, Path], missing: tuple[str, ...]) -> None:
    toy, folder = saved
    forgetful = small_gpt2(**EVERYTHING)
    state, start = load_state(folder), forgetful.trainer.state_dict()
    *path, last = missing
    node, fresh = state, start
    for key in path:
        node, fresh = node[key], fresh[key]
    node[last] = fresh[last]
    forgetful.trainer.load_state_dict(state)
    assert not same(future(forgetful)[1], future(toy)[1])
