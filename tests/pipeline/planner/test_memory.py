"""Memory of stages: literals worked out by hand for one small model, and what must hold for every config."""

import json
from pathlib import Path

import pytest

from pipeline.config_loading import load_config
from pipeline.planner.fitting import Setting, largest_microbatch, remedy
from pipeline.planner.memory import StageMemory, stage_memory
from pipeline.planner.roles import cast_of
from pipeline.planner.sharding import Split

SMALL = {
    **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 10},
}
LAYER = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16 + 2 * 8
"""q, k and v of one head of 4, o; gate, up, down; two norms: 592."""
POLICY = 10 * 8 + 2 * LAYER + 8 + 10 * 8
VALUE = 10 * 8 + 2 * LAYER + 8 + 8
TOKENS = 8
"""A microbatch of one sequence of max_prompt_tokens + max_new_tokens = 4 + 4."""
SAVED = 4 * (6 * 8 + 4 * 8 + 4 * 16 + 8) + 4 * 2
"""By token and layer: six of H by the norms, four of A d by attention, four of F, a row of the mask; two log-sums."""
ALONE = Split()
LORA = "{method: lora, r: 2}"


@pytest.fixture(autouse=True)
def _here(workplace):
    Path("base/config.json").write_text(json.dumps(SMALL))


def plan(stage: str, *overrides: str, split: Split = ALONE) -> StageMemory:
    config = load_config("config.yaml", overrides)
    return stage_memory(config, stage, cast_of(config, stage, split.shares_bases), split)


def roles(memory: StageMemory) -> dict[str, tuple[float, float, float]]:
    return {r.role.name: (r.share.weights, r.share.gradients, r.share.optimizer) for r in memory.rows}


def test_full_fine_tuning_by_hand():
    assert (LAYER, POLICY, VALUE) == (592, 1352, 1280)
    assert roles(plan("sft")) == {"policy": (4 * 1352, 4 * 1352, 8 * 1352)}
    assert roles(plan("reward_model")) == {"reward model": (4 * 1280, 4 * 1280, 8 * 1280)}
    assert roles(plan("ppo")) == {
        "policy": (5408, 5408, 10816),
        "value model": (5120, 5120, 10240),
        "reference": (5408, 0, 0),
        "reward model": (5120, 0, 0),
    }


def test_four_roles_of_adapters_stand_on_one_base():
    adapter = 2 * 2 * ((8 + 8) + (8 + 4))  # two layers, r = 2, q and v
    tunings = [f"{stage}.tuning={LORA}" for stage in ("sft", "reward_model", "ppo")]
    assert roles(plan("ppo", *tunings)) == {
        "base of policy, reference, reward model, value model": (5408, 0, 0),
        "policy": (4 * adapter, 4 * adapter, 8 * adapter),
        "value model": (4 * (adapter + 8), 4 * (adapter + 8), 8 * (adapter + 8)),
        "reference": (4 * adapter, 0, 0),
        "reward model": (4 * (adapter + 8), 0, 0),
    }


def test_each_further_reward_model_costs_its_adapter():
    adapter = 4 * (2 * 2 * ((8 + 8) + (8 + 4)) + 8)
    tunings = [f"{stage}.tuning={LORA}" for stage in ("sft", "reward_model", "ppo")]
    found = roles(plan("ppo", *tunings, "reward_model.members=3"))
    assert [found[f"reward model{i}"][0] for i in ("", " 2", " 3")] == [adapter] * 3
    whole = roles(plan("ppo", "reward_model.members=2"))
    assert [whole[f"reward model{i}"][0] for i in ("", " 2")] == [5120] * 2


def test_under_stage_three_every_role_has_the_whole_base():
    tunings = [f"{stage}.tuning={LORA}" for stage in ("sft", "reward_model", "ppo")]
    found = roles(plan("ppo", *tunings, split=Split(2, 3)))
    assert list(found) == ["policy", "value model", "reference", "reward model"]
    assert found["reference"] == ((5408 + 4 * 112) / 2, 0, 0)


def test_adapters_after_full_fine_tuning_share_what_each_stage_left():
    found = roles(plan("ppo", f"ppo.tuning={LORA}"))
    assert found["base of policy, reference"] == (5408, 0, 0)
    assert found["base of reward model, value model"] == (5120, 0, 0)


def test_without_a_learned_reward_the_value_model_stands_on_the_policys_base():
    found = roles(plan("ppo", f"ppo.tuning={LORA}", "reward=[{function: 'a.py:f'}]", "reward_model.enabled=false"))
    assert list(found) == ["base of policy, reference, value model", "policy", "value model", "reference"]


def test_the_activations_of_ppo_by_hand():
    learns = {phase.name: phase.parts for phase in plan("ppo").phases}["policy learns"]
    assert learns["activations"] == TOKENS * (2 * SAVED + 3 * 4 * 8)
    assert learns["logits"] == TOKENS * 10 * (2 * 4 + 3 * 4)
    assert learns["copies of weights"] == 0


def test_a_peak_by_hand_is_what_stays_with_gradients_and_the_worst_phase():
    """16 bytes per number; saved states, a layer at work, and a tile of 8 x 10 logits with the gradients around it."""
    memory = plan("sft")
    working = TOKENS * (3 * 16 * 4 + 8 * (2 * 4 + 4) + 8 * 4)
    logits = TOKENS * 10 * (4 + 2 * 4) + 4 * 8 * (TOKENS + 10)
    assert memory.peak == 16 * POLICY + TOKENS * (2 * SAVED + 3 * 4 * 8) + working + logits
    assert memory.worst.name == "policy learns"


def test_four_bits_are_for_the_matrices_of_a_base_alone():
    overrides = ["model.quantization=4bit", *(f"{stage}.tuning={LORA}" for stage in ("sft", "reward_model", "ppo"))]
    base = plan("ppo", *overrides).rows[0].share.weights
    matrices = 2 * (LAYER - 16)
    assert base == pytest.approx(matrices * 4.127 / 8 + 4 * (POLICY - matrices))


def test_the_states_of_a_frozen_trunk_are_kept_for_a_rollout_unless_roles_share_no_layers():
    lora = [f"{stage}.tuning={LORA}" for stage in ("sft", "reward_model", "ppo")]
    shared, apart = (plan("ppo", *lora, "trunk.frozen_layers=1", split=Split(2, zero)) for zero in (2, 3))
    kept = [{p.name: p.parts.get("frozen trunk's states") for p in x.phases}["policy learns"] for x in (shared, apart)]
    assert kept == [2 * 8 * 8 * 4, None]


def test_recomputing_keeps_what_enters_each_layer():
    learns = {p.name: p.parts for p in plan("ppo", "ppo.gradient_checkpointing=true").phases}["policy learns"]
    assert learns["activations"] == TOKENS * (2 * 4 * 8 + SAVED + 3 * 4 * 8)


def test_the_cache_of_a_rollout_by_hand():
    """4 completions of 8 tokens; keys and values of one head of 4 in two layers, and a third while one grows."""
    last = {phase.name: phase.parts for phase in plan("ppo").phases}["rollout, last token"]
    assert last["KV cache"] == 4 * 8 * (3 * 2 * 4 * 4 + 2 * 8 * 4)
    assert last["logits"] == 6 * 4 * 4 * 10


def test_products_in_bfloat16_copy_the_weights_that_learn():
    learns = {phase.name: phase.parts for phase in plan("sft", "model.compute=bfloat16").phases}["policy learns"]
    assert learns["copies of weights"] == 2 * 2 * (LAYER - 16)


def test_a_rollout_under_stage_three_needs_the_whole_policy_or_what_is_at_work():
    big = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24}
    Path("base/config.json").write_text(json.dumps(SMALL | big))
    whole, parts = (plan("ppo", split=Split(4, 3, gather_for_rollouts=gather)) for gather in (True, False))
    found = [{p.name: p.parts.get("gathered weights") for p in x.phases}["rollout, prompts"] for x in (whole, parts)]
    policy = next(row.role for row in whole.rows if row.role.name == "policy")
    assert found == [4 * policy.trained, 4e9]
    assert policy.trained > 1e9


def test_under_stage_three_autocast_copies_a_matrix_at_a_time():
    memory = plan("ppo", "model.compute=bfloat16", split=Split(2, 3))
    found = {phase.name: phase.parts.get("copies of weights") for phase in memory.phases}
    assert found["policy learns"] == found["rollout, prompts"] == 2 * 8 * 16


def test_bfloat16_halves_a_frozen_base_and_nothing_that_learns():
    tunings = [f"{stage}.tuning={LORA}" for stage in ("sft", "reward_model", "ppo")]
    wide, narrow = (plan("ppo", *tunings, *more) for more in ([], ["model.dtype=bfloat16", "model.compute=bfloat16"]))
    assert wide.rows[0].share.weights == 2 * narrow.rows[0].share.weights
    assert roles(wide)["policy"] == roles(narrow)["policy"]


@pytest.mark.parametrize("stage", ["sft", "reward_model", "ppo"])
def test_memory_grows_with_the_microbatch(stage):
    def peak(size: int) -> float:
        return plan(stage, f"{stage}.microbatch_size={size}", *sizes).peak

    sizes = [*("ppo.rollout_batch_size=32", "ppo.minibatch_size=32"), "sft.batch_size=32", "reward_model.batch_size=32"]
    assert peak(4) < peak(8) < peak(16)


@pytest.mark.parametrize("stage", ["sft", "reward_model", "ppo"])
def test_all_ranks_together_hold_the_weights_once_under_stage_three(stage):
    alone, parted = plan(stage), plan(stage, split=Split(4, 3))
    assert 4 * sum(r.share.weights for r in parted.rows) == sum(r.share.weights for r in alone.rows)


def setting(*overrides: str, split: Split = ALONE) -> Setting:
    return Setting(load_config("config.yaml", overrides), split)


def test_the_largest_microbatch_is_the_last_that_fits():
    sizes = ["ppo.rollout_batch_size=32", "ppo.minibatch_size=32"]
    found = setting(*sizes)
    memory = plan("ppo", *sizes, "ppo.microbatch_size=8").peak
    assert largest_microbatch(found, "ppo", memory) == 8
    assert largest_microbatch(found, "ppo", memory - 1) == 4
    assert largest_microbatch(found, "ppo", 1000) == 0


def test_the_first_knob_is_one_that_is_enough_alone():
    wide = ["ppo.rollout_batch_size=32", "ppo.minibatch_size=32", "ppo.microbatch_size=32"]
    found = setting(*wide)
    enough = plan("ppo", *wide, "ppo.gradient_checkpointing=true").peak
    assert remedy(found, "ppo", enough) == ["ppo.gradient_checkpointing=true"]
    assert remedy(found, "ppo", enough - 1) == ["ppo.microbatch_size=16"]


def test_several_knobs_are_named_where_one_is_not_enough():
    sizes = ["ppo.rollout_batch_size=64", "ppo.minibatch_size=4"]
    found = setting(*sizes, split=Split(4, 0))
    enough = plan("ppo", *sizes[1:], "ppo.rollout_batch_size=32", split=Split(4, 3)).peak
    assert remedy(found, "ppo", enough) == ["ppo.rollout_batch_size=32", "deepspeed.zero_stage=3"]
    assert remedy(found, "ppo", 100) is None


def test_a_rank_computes_no_larger_microbatch_than_it_has_rows():
    sizes = ["ppo.rollout_batch_size=32", "ppo.minibatch_size=32"]
    few, many = (plan("ppo", *sizes, f"ppo.microbatch_size={size}", split=Split(8)).peak for size in (4, 32))
    assert few == many
