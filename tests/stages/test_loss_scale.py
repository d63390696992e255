"""float16 trains with a dynamic loss scale: small gradients survive, overflowing ones leave the weights alone."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stages.engine import TorchEngine, constant
from stages.loss_scale import GROWTH_STEPS, LossScale
from stages.models.config import TuningConfig
from tests.reward_toys import LORA, Stage


def test_the_scale_is_halved_by_an_overflow_and_doubled_after_enough_good_steps():
    scale = LossScale()
    assert scale.value == 65536.0
    assert scale.overflowed(finite=False)
    assert scale.value == 32768.0
    assert not any(scale.overflowed(finite=True) for _ in range(GROWTH_STEPS - 1))
    assert scale.value == 32768.0
    assert not scale.overflowed(finite=True)
    assert scale.value == 65536.0


def test_an_overflow_starts_the_count_again_and_both_are_saved():
    scale, other = LossScale(), LossScale()
    for finite in (*[True] * (GROWTH_STEPS - 1), False, *[True] * (GROWTH_STEPS - 1)):
        scale.overflowed(finite)
    other.load_state_dict(scale.state_dict())
    assert scale.value == other.value == 32768.0
    other.overflowed(finite=True)
    assert other.value == 65536.0


def test_at_a_scale_of_one_nothing_is_mended():
    scale = LossScale()
    assert [scale.overflowed(finite=False) for _ in range(18)] == [True] * 16 + [False] * 2
    assert scale.value == 1.0


def engine(scale: LossScale | None, rate: float = 1.0) -> TorchEngine:
    """One weight of 1.0, whose gradient is that of what it is multiplied with."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    return TorchEngine(module, optimizer, constant(10, 0), max_grad_norm=1e9, loss_scale=scale)


def half_loss(trained: TorchEngine, factor: float) -> Tensor:
    """`factor` times the weight; its gradient passes through float16."""
    with torch.autocast("cpu", dtype=torch.float16):
        return (trained.module(torch.ones(1, 1)) * 1.0).float().sum() * factor


@pytest.mark.parametrize(("scale", "norm"), [(None, 0.0), (LossScale(), 1e-9)])
def test_a_gradient_below_the_smallest_float16_survives_with_a_scale(scale: LossScale | None, norm: float):
    trained = engine(scale)
    trained.backward(half_loss(trained, 1e-9))
    assert trained.clip() == pytest.approx(norm, rel=1e-2, abs=1e-12)


def test_an_overflow_leaves_the_weight_and_the_next_step_takes_it():
    trained = engine(LossScale())
    trained.backward(half_loss(trained, 1.5))  # 1.5 * 65536 is more than float16 holds
    assert trained.clip() is None
    trained.step()
    assert trained.module.weight.item() == 1.0
    trained.backward(half_loss(trained, 1.5))
    assert trained.clip() == 1.5
    trained.step()
    assert trained.module.weight.item() == -0.5


def test_a_gradient_that_no_scale_makes_finite_is_told():
    trained = engine(LossScale())
    for _ in range(16):
        trained.backward(half_loss(trained, math.inf))
        assert trained.clip() is None
    trained.backward(half_loss(trained, math.inf))
    assert trained.clip() == math.inf


def test_until_the_first_overflow_a_reward_model_learns_as_in_float32(tmp_path: Path):
    whole, half = Stage(tmp_path / "whole"), Stage(tmp_path / "half", compute="float16")
    for stage in (whole, half):
        result = stage.run(learning_rate=1e-2, tuning=TuningConfig(**LORA))
    assert result.headline["accuracy"] > 0.9
    scales, losses = (half.tracker.series(f"reward_model/{name}") for name in ("loss_scale", "loss"))
    alike = scales.count(65536.0)
    assert len(scales) == len(losses) == 24
    assert alike >= 4
    assert losses[:alike] == pytest.approx(whole.tracker.series("reward_model/loss")[:alike], rel=1e-2)
