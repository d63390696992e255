"""Bytes sent and seconds taken by one step: literals worked out by hand."""

import json
from pathlib import Path

import pytest

from pipeline.config_loading import load_config
from pipeline.planner.costs import MBU, MFU, Device
from pipeline.planner.roles import cast_of
from pipeline.planner.sharding import Split
from pipeline.planner.work import StageWork, stage_work
from tests.pipeline.planner.test_memory import ALONE, LORA, POLICY, SMALL, VALUE

MATRICES = 2 * (592 - 16)
"""Numbers that a token of the small model is multiplied by, without the output layer."""
UNIT = Device("unit", memory=1.0, bfloat16=1 / MFU, float32=1 / MFU, bandwidth=1e9 / MBU)
"""One operation per second, and memory that costs nothing."""
SLOW = Device("slow", memory=1.0, bfloat16=1e30, float32=1e30, bandwidth=1 / MBU)
"""One byte per second, and arithmetic that costs nothing."""


@pytest.fixture(autouse=True)
def _here(workplace):
    Path("base/config.json").write_text(json.dumps(SMALL))


def work(stage: str, *overrides: str, split: Split = ALONE, device: Device = UNIT) -> StageWork:
    config = load_config("config.yaml", overrides)
    return stage_work(config, stage, cast_of(config, stage, split.shares_bases), split, device)


def forward(tokens: int, length: int) -> int:
    return tokens * (2 * MATRICES + 4 * 2 * 8 * length)


def test_full_fine_tuning_costs_three_forward_passes():
    """2 sequences of 8 tokens; the output layer, 10 x 8, four times because its tiles are made twice."""
    assert work("sft").total == pytest.approx(3 * forward(16, 8) + 4 * 2 * 16 * 10 * 8)


def test_pairs_are_two_sequences_and_a_reward_model_has_no_vocabulary():
    assert work("reward_model").total == pytest.approx(3 * forward(32, 8))


def test_an_adapter_costs_two_and_recomputing_one_more():
    lora = [f"{stage}.tuning={LORA}" for stage in ("sft", "reward_model", "ppo")]
    plain, again = (work("reward_model", *lora, *x).total for x in ([], ["reward_model.gradient_checkpointing=true"]))
    assert plain == pytest.approx(2 * forward(32, 8))
    assert again == pytest.approx(3 * forward(32, 8))


def test_ppo_trains_two_models_for_every_epoch():
    """4 completions of 4 + 4 tokens, 4 epochs; logits of 4 x 4 completion tokens."""
    seconds = work("ppo").seconds
    logits = 2 * 16 * 10 * 8
    assert seconds["training"] == pytest.approx(4 * (2 * 3 * forward(32, 8) + 4 * logits))
    assert seconds["scoring"] == pytest.approx(4 * forward(32, 8) + 2 * logits)
    assert seconds["prompts"] == pytest.approx(forward(16, 8) + 2 * 4 * 10 * 8)


def test_decoding_reads_all_weights_and_the_cache_for_every_token():
    """4 tokens; 4 bytes per number; 4 rows with keys and values of one head of 4 in 2 layers, 6 tokens on average."""
    numbers, kept = MATRICES + 10 * 8, 4 * 6 * 2 * (2 * 4 * 4)
    assert work("ppo", device=SLOW).seconds["decoding"] == pytest.approx(4 * (4 * numbers + kept))


def test_weights_are_read_once_for_the_whole_batch():
    cached = [0.0, 0.0]
    for index, size in enumerate((4, 8)):
        decoding = work("ppo", f"ppo.rollout_batch_size={size}", device=SLOW).seconds["decoding"]
        cached[index] = decoding - 4 * 4 * (MATRICES + 80)
    assert cached[1] == pytest.approx(2 * cached[0])


def test_frozen_layers_are_computed_once_for_all_roles():
    tunings = [f"{stage}.tuning={LORA}" for stage in ("sft", "reward_model", "ppo")]
    found = work("ppo", *tunings, "trunk.frozen_layers=1").seconds
    logits = 2 * 16 * 10 * 8
    assert found["scoring"] == pytest.approx(4 * forward(32, 8) / 2 + forward(32, 8) / 2 + 2 * logits)
    assert found["training"] == pytest.approx(4 * (2 * 2 * forward(32, 8) / 2 + 3 * logits))


def test_a_supervised_step_sends_what_the_paper_says():
    sent = [work("sft", split=Split(2, zero)).sent for zero in range(4)]
    assert sent == [POLICY * 4, POLICY * 6, POLICY * 6, POLICY * 6]


def test_ppo_sends_for_every_minibatch_and_gathers_for_every_pass():
    """8 optimizer steps; per rank one completion each, and two in scoring by four whole roles; 4 tokens are drawn."""
    streamed = Split(2, 3, gather_for_rollouts=False)
    assert work("ppo", split=streamed).sent_by["rollout"] == 4 * work("ppo", split=Split(2, 3)).sent_by["rollout"]
    both = 4 * (POLICY + VALUE)
    assert work("ppo", split=Split(2, 0)).sent == 8 * 2 * both / 2
    assert work("ppo", split=Split(2, 3)).sent == (8 * 3 * both + 2 * 2 * both + 4 * POLICY) / 2


def test_adapters_send_almost_nothing_until_their_base_is_partitioned():
    tunings = [f"{stage}.tuning={LORA}" for stage in ("sft", "reward_model", "ppo")]
    whole, parted = (work("ppo", *tunings, split=Split(2, zero)).sent for zero in (2, 3))
    assert whole == 8 * 3 * 4 * (112 + 120) / 2
    assert parted > 8 * 2 * 2 * 4 * POLICY / 2
