"""Methods that cannot follow one another are refused when the config is read."""

import sys
from pathlib import Path

import pytest

from pipeline.config_loading import load_config
from pipeline.preflight import check
from stages.base import InputError

LORA, WIDER, ADAPTER, PROMPT = "{method: lora}", "{method: lora, r: 8}", "{method: adapter}", "{method: prompt_tuning}"
FOLLOW = "give {0}.tuning the values of sft.tuning, or let sft train lora or full"


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (
            {"sft": ADAPTER, "reward_model": ADAPTER, "ppo": LORA},
            "ppo.tuning cannot start where sft.tuning ends: adapter cannot be merged into weights; "
            + FOLLOW.format("ppo"),
        ),
        (
            {"sft": PROMPT, "reward_model": LORA, "ppo": PROMPT},
            "reward_model.tuning cannot start where sft.tuning ends: prompt_tuning cannot be merged into weights; "
            + FOLLOW.format("reward_model")
            + ", or set reward_model.path: <model.path>",
        ),
        (
            {"sft": LORA, "reward_model": LORA, "ppo": PROMPT},
            "ppo.tuning.method: prompt_tuning would put new virtual tokens before every prompt, so PPO would not start "
            "at its reference",
        ),
    ],
)
def test_a_stage_that_cannot_take_up_its_parent_is_refused(workplace: Path, overrides: dict, part: str):
    with pytest.raises(InputError) as error:
        load_config("config.yaml", [f"{stage}.tuning={tuning}" for stage, tuning in overrides.items()])
    assert part in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["sft.tuning={method: lora}", f"reward_model.tuning={ADAPTER}", f"ppo.tuning={WIDER}"],
        [f"{stage}.tuning={ADAPTER}" for stage in ("sft", "reward_model", "ppo")],
        [f"{stage}.tuning={PROMPT}" for stage in ("sft", "reward_model", "ppo")],
        [f"sft.tuning={PROMPT}", f"ppo.tuning={PROMPT}", "reward_model.path=base", f"reward_model.tuning={LORA}"],
    ],
)
def test_what_can_follow_is_accepted(workplace: Path, overrides: list[str]):
    assert load_config("config.yaml", overrides).sft.tuning.method in ("lora", "adapter", "prompt_tuning")


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["trunk.frozen_layers=1"], "trunk.frozen_layers with ppo.tuning.method: full, which changes what every layer"),
        (
            [f"{stage}.tuning={PROMPT}" for stage in ("sft", "reward_model", "ppo")] + ["sft.packing=true"],
            "sft.packing puts several texts behind one prompt_tuning prompt",
        ),
        (["model.quantization=4bit"], "sft.tuning.method: full cannot train 4-bit weights"),
    ],
)
def test_a_method_that_does_not_fit_the_model_is_refused(workplace: Path, overrides: list[str], part: str):
    with pytest.raises(InputError) as error:
        load_config("config.yaml", overrides)
    assert part in str(error.value)


def test_the_check_misses_the_library_for_four_bits(workplace: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    overrides = [f"{stage}.tuning={LORA}" for stage in ("sft", "reward_model", "ppo")]
    found = check(load_config("config.yaml", ["model.quantization=4bit", *overrides])).errors
    assert [error.code for error in found] == ["DEP02"]


def test_the_check_knows_peft_types_and_virtual_tokens_that_nobody_trained(workplace: Path):
    found = check(load_config("config.yaml", ["sft.tuning={method: lorra}"])).errors
    assert [error.code for error in found] == ["TUNE05"]
    found = check(load_config("config.yaml", ["sft.enabled=false", f"ppo.tuning={PROMPT}"])).errors
    assert [error.code for error in found] == ["TUNE06"]
