"""What the PPO section refuses, and why in words."""

import pytest
from pydantic import ValidationError

from pipeline.config import PipelineConfig
from stages.ppo.config import PPOConfig


@pytest.mark.parametrize(
    "key, value", [("top_k", 50), ("top_p", 0.9), ("repetition_penalty", 1.1), ("min_new_tokens", 4)]
)
def test_sampling_that_would_not_be_scored_is_refused(key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=f"{key} makes the sampled distribution differ from the scored one"):
        PPOConfig(**{key: value})


def test_batches_must_divide_and_the_nearest_sizes_are_named() -> None:
    with pytest.raises(ValidationError, match="ppo.rollout_batch_size 100 is not a multiple of ppo.minibatch_size 32"):
        PPOConfig(rollout_batch_size=100, minibatch_size=32, microbatch_size=16)
    with pytest.raises(ValidationError, match="ppo.minibatch_size 32 is not a multiple of ppo.microbatch_size 12"):
        PPOConfig(rollout_batch_size=64, minibatch_size=32, microbatch_size=12)


def test_temperature_zero_and_dropout_are_refused() -> None:
    with pytest.raises(ValidationError, match="temperature"):
        PPOConfig(temperature=0)
    with pytest.raises(ValidationError, match="dropout would make the first ratio differ from 1"):
        PPOConfig(tuning={"method": "lora", "dropout": 0.1})


def test_a_rounded_reference_beside_a_float32_policy_is_refused() -> None:
    model = {"path": "m", "dtype": "bfloat16", "compute": "bfloat16"}
    with pytest.raises(ValidationError, match="KL would not start at 0"):
        PipelineConfig(run={"name": "r"}, model=model)
    PipelineConfig(run={"name": "r"}, model=model, ppo={"tuning": {"method": "lora"}})


def test_optimizer_steps_are_iterations_times_epochs_times_minibatches() -> None:
    config = PPOConfig(steps=10, rollout_batch_size=64, minibatch_size=16, microbatch_size=8, ppo_epochs=3)
    assert config.optimizer_steps == 120
