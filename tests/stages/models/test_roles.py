"""Roles on one base: where each starts, what it shares, what it trains, and what plain transformers reads."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel, TaskType
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from stages.base import InputError
from stages.models.adapters import attach_adapter, load_adapter_weights, same_shape
from stages.models.config import ModelConfig, TuningConfig
from stages.models.heads import PolicyModel, ScoreModel
from stages.models.load import ModelSource, load_tokenizer, source_of
from stages.models.peft_types import peft_config
from stages.models.publish import publish
from stages.models.roles import Roles, share, trainable
from stages.models.scalar import load_classifier, with_scalar_head
from stages.models.trunk import decoder_layers
from tests.toy_models import ARCHITECTURES, EOS, PAD, noise, random_ids, save_toy, toy_lm, toy_tokenizer

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
FULL = TuningConfig()
LORA = TuningConfig(method="lora", r=2, alpha=4)
WIDER = TuningConfig(method="lora", r=4, alpha=4, targets="all-linear")
IDS = random_ids(3, 8)
ATTENDED = torch.ones(3, 8, dtype=torch.bool)


def roles(base: Path | str) -> Roles:
    return Roles(ModelConfig(path=str(base)))


def logits(lm: nn.Module) -> Tensor:
    with torch.no_grad():
        return lm(IDS).logits


def base_folder(folder: Path, architecture: str = "llama") -> Path:
    return save_toy(folder / "base", architecture)


def sft_adapter(folder: Path, base: Path, tuning: TuningConfig = LORA) -> Path:
    """A trained SFT adapter, published as the stage does."""
    builder = roles(base)
    lm = builder.policy(source_of(base), tuning)
    noise(lm, only="lora_")
    publish(lm, toy_tokenizer(), folder / "sft" / "final", builder)
    return folder / "sft" / "final"


def reward_folder(folder: Path, source: Path, tuning: TuningConfig) -> Path:
    """A trained reward model over the language model of `source`, published as the stage does."""
    tokenizer = load_tokenizer(source_of(source))
    torch.manual_seed(0)
    builder = roles(source)
    classifier = builder.scorer_to_train(source_of(source), tuning, tokenizer.pad_token_id)
    noise(classifier, only="lora_" if tuning.method == "lora" else "")
    publish(classifier, tokenizer, folder / "reward" / "final", builder)
    return folder / "reward" / "final"


def test_structural_copies_share_every_tensor_and_no_module():
    lm = toy_lm("gpt2")
    copy = share(lm)
    for (name, a), (_, b) in zip(lm.named_parameters(), copy.named_parameters(), strict=True):
        assert a is b, name
    assert {id(m) for m in lm.modules()}.isdisjoint(id(m) for m in copy.modules())
    assert copy.config is not lm.config
    assert copy.lm_head.weight is copy.transformer.wte.weight


@each_architecture
def test_an_adapter_in_one_copy_does_not_touch_another(architecture: str):
    base = toy_lm(architecture).requires_grad_(False)
    before, other = logits(base), share(base)
    adapted = attach_adapter(share(base), peft_config(LORA, base, TaskType.CAUSAL_LM))
    noise(adapted, only="lora_")
    assert not torch.equal(logits(adapted), before)
    assert torch.equal(logits(base), before)
    assert torch.equal(logits(other), before)
    assert not any("lora_" in name for name, _ in [*base.named_modules(), *other.named_modules()])


@each_architecture
@pytest.mark.parametrize(
    "start", ["base, full", "base, lora", "adapter continued", "adapter of another shape", "adapter, full"]
)
def test_a_fresh_policy_is_exactly_the_reference(architecture: str, start: str, tmp_path: Path):  # 11
    base = base_folder(tmp_path, architecture)
    source = source_of(base if start.startswith("base") else sft_adapter(tmp_path, base))
    tuning = {"base, full": FULL, "adapter, full": FULL, "adapter of another shape": WIDER}.get(start, LORA)
    builder = roles(base)
    source = builder.adaptable(source, tuning)
    policy, reference = (PolicyModel(lm, 0.7) for lm in (builder.policy(source, tuning), builder.reference(source)))
    gap = (
        (policy(IDS, ATTENDED, ATTENDED[:, 4:]).logprobs - reference(IDS, ATTENDED, ATTENDED[:, 4:]).logprobs)
        .abs()
        .max()
    )
    assert gap == 0
    if not start.startswith("base"):
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "sft" / "final")
        assert (logits(policy.lm) - logits(plain)).abs().max() <= 1e-5
        assert (logits(policy.lm) - logits(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 1e-3


def test_merged_weights_follow_the_adapter_when_its_stage_is_trained_again(tmp_path: Path):
    base = base_folder(tmp_path)
    final = sft_adapter(tmp_path, base)
    first = logits(roles(base).reference(roles(base).adaptable(source_of(final), WIDER)))
    builder = roles(base)
    lm = builder.policy(source_of(base), LORA)
    noise(lm, only="lora_", seed=5)
    publish(lm, toy_tokenizer(), final, builder)
    second = logits(roles(base).reference(roles(base).adaptable(source_of(final), WIDER)))
    assert not torch.allclose(first, second, atol=1e-3)
    assert (second - logits(lm)).abs().max() <= 1e-5


def test_merging_that_was_interrupted_is_done_again(tmp_path: Path):
    base = base_folder(tmp_path)
    source = source_of(sft_adapter(tmp_path, base))
    merged = Path(roles(base).adaptable(source, WIDER).base)
    for weights in merged.glob("*.safetensors"):
        weights.unlink()
    merged.rename(merged.with_name(f".{merged.name}-1"))  # how a killed process leaves it: without its name
    again = roles(base)
    assert (
        logits(again.reference(again.adaptable(source, WIDER))) - logits(again.reference(source))
    ).abs().max() <= 1e-5


@each_architecture
def test_a_saved_adapter_gives_the_same_logits_in_plain_peft_and_merged(architecture: str, tmp_path: Path):  # 12, 43
    base = base_folder(tmp_path, architecture)
    builder = roles(base)
    lm = builder.policy(source_of(base), LORA)
    noise(lm, only="lora_")
    publish(lm, toy_tokenizer(), tmp_path / "final", builder)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "final").eval()
    assert torch.equal(logits(plain), logits(lm))
    with plain.disable_adapter():
        assert torch.equal(logits(plain), logits(toy_lm(architecture)))
    assert torch.equal(logits(plain), logits(lm))
    assert (logits(plain.merge_and_unload()) - logits(lm)).abs().max() <= 1e-5


@each_architecture
def test_only_the_adapter_and_the_head_are_trained(architecture: str, tmp_path: Path):
    base = base_folder(tmp_path, architecture)
    builder, source = roles(base), source_of(base)
    policy = builder.policy(source, LORA)
    value = builder.value_from_policy(source, LORA, PAD)
    assert {n for n, p in policy.named_parameters() if p.requires_grad} == {
        n for n, _ in policy.named_parameters() if "lora_" in n
    }
    trained = {n for n, p in value.named_parameters() if p.requires_grad}
    assert {n for n in trained if "lora_" not in n} == {"base_model.model.score.modules_to_save.default.weight"}
    assert len(list(trainable(policy))) == 2 * 2 * (2 if architecture == "llama" else 1)
    assert all(p.dtype == torch.float32 for p in trainable(policy))


def test_full_tuning_trains_every_parameter_in_tensors_of_its_own(tmp_path: Path):
    base = base_folder(tmp_path)
    builder, source = roles(base), source_of(base)
    models = [builder.policy(source, FULL), builder.value_from_policy(source, FULL, PAD), builder.reference(source)]
    assert all(p.requires_grad for model in models[:2] for p in model.parameters())
    tensors = [{p.data_ptr() for p in model.parameters()} for model in models]
    assert tensors[0].isdisjoint(tensors[1]) and tensors[0].isdisjoint(tensors[2]) and tensors[1].isdisjoint(tensors[2])


@pytest.mark.parametrize("tuning", [FULL, LORA])
def test_nothing_of_a_reference_or_reward_model_is_trainable(tuning: TuningConfig, tmp_path: Path):  # 12
    base = base_folder(tmp_path)
    final = reward_folder(tmp_path, base, tuning)
    builder = roles(base)
    sft = source_of(sft_adapter(tmp_path, base))
    policy = PolicyModel(builder.policy(sft, LORA))
    for frozen in (builder.reward_model(source_of(final)), builder.reference(sft), builder.reference(source_of(base))):
        assert not any(p.requires_grad for p in frozen.parameters())
    reference = builder.reference(sft)
    before = {n: p.clone() for n, p in reference.named_parameters()}
    optimizer = torch.optim.SGD(trainable(policy), lr=1.0)
    policy(IDS, ATTENDED, ATTENDED[:, 4:]).logprobs.sum().backward()
    optimizer.step()
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in reference.named_parameters())


@each_architecture
def test_all_roles_hold_one_copy_of_the_base(architecture: str, tmp_path: Path):
    base = base_folder(tmp_path, architecture)
    reward, sft = reward_folder(tmp_path, base, LORA), sft_adapter(tmp_path, base)
    builder = roles(base)
    models = [
        builder.policy(source_of(sft), LORA),
        builder.reference(source_of(sft)),
        builder.reward_model(source_of(reward)),
        builder.value_from_reward_model(source_of(reward), LORA),
        builder.reference(source_of(base)),
    ]
    tensors = [
        {p.data_ptr() for layer in decoder_layers(m) for n, p in layer.named_parameters() if "lora_" not in n}
        for m in models
    ]
    assert all(t == tensors[0] for t in tensors)
    adapters = [{p.data_ptr() for n, p in m.named_parameters() if "lora_" in n} for m in models[:4]]
    assert sum(map(len, adapters)) == len(set().union(*adapters))


@each_architecture
@pytest.mark.parametrize("tuning", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("value_tuning", [FULL, LORA], ids=["full", "lora"])
@torch.no_grad()
def test_a_value_model_starts_as_the_centred_reward_model(
    architecture: str, tuning: TuningConfig, value_tuning: TuningConfig, tmp_path: Path
):  # 36
    base = base_folder(tmp_path, architecture)
    source = source_of(reward_folder(tmp_path, base, tuning))
    builder = roles(base)
    reward = ScoreModel(builder.reward_model(source), 0.3, 2.0)
    value = ScoreModel(builder.value_from_reward_model(source, value_tuning), 0.3, 2.0)
    ids = torch.cat([IDS, torch.full((3, 1), EOS)], 1)
    after = torch.cat([ids, torch.full((3, 1), PAD)], 1)
    attended = torch.ones(3, 10, dtype=torch.bool)
    scores = reward.scores(ids, attended[:, :9])
    assert (value.values(after, attended, 1)[:, 0] - scores).abs().max() <= 1e-5
    assert scores.std() > 1e-2
    assert any(p.requires_grad for p in value.parameters())


@pytest.mark.parametrize("tuning", [FULL, LORA], ids=["full", "lora"])
@torch.no_grad()
def test_a_value_model_without_a_reward_model_says_zero_everywhere(tuning: TuningConfig, tmp_path: Path):
    base = base_folder(tmp_path)
    value = ScoreModel(roles(base).value_from_policy(source_of(base), tuning, PAD))
    assert value(IDS, ATTENDED).eq(0).all()


def test_a_value_model_continues_the_sft_adapter(tmp_path: Path):
    base = base_folder(tmp_path)
    sft = sft_adapter(tmp_path, base)
    value = roles(base).value_from_policy(source_of(sft), LORA, PAD)
    with torch.no_grad():
        hidden = value.get_base_model().model(IDS).last_hidden_state
        expected = roles(base).reference(source_of(sft)).get_base_model().model(IDS).last_hidden_state
    assert torch.equal(hidden, expected)


def test_the_head_of_a_new_reward_model_is_normal_with_variance_one_over_width_plus_one(tmp_path: Path):
    base = base_folder(tmp_path)
    torch.manual_seed(0)
    heads = torch.stack(
        [roles(base).scorer_to_train(source_of(base), FULL, PAD).score.weight.detach()[0] for _ in range(40)]
    )
    assert abs(heads.std() * 33**0.5 - 1) < 0.1
    assert abs(heads.mean()) < 0.02


@each_architecture
@pytest.mark.parametrize("tuning", [FULL, LORA], ids=["full", "lora"])
@torch.no_grad()
def test_plain_transformers_gives_our_scores_though_the_base_padded_with_eos(
    architecture: str, tuning: TuningConfig, tmp_path: Path
):
    base = save_toy(tmp_path / "base", architecture, tokenizer=toy_tokenizer(pad_token="<eos>"), pad_token_id=EOS)
    final = reward_folder(tmp_path, base, tuning)
    tokenizer = load_tokenizer(source_of(final))
    texts = [[*random_ids(n, seed=n).tolist(), EOS] for n in (3, 7, 5)]
    padded = tokenizer.pad({"input_ids": texts}, padding_side="right", return_tensors="pt")
    ours = ScoreModel(roles(base).reward_model(source_of(final))).scores(padded.input_ids, padded.attention_mask.bool())
    if tuning is FULL:
        plain = AutoModelForSequenceClassification.from_pretrained(final)
    else:
        classifier = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=1, pad_token_id=tokenizer.pad_token_id
        )
        plain = PeftModel.from_pretrained(classifier, final)
    assert (plain.eval()(**padded).logits[:, 0] - ours).abs().max() <= 1e-5


def test_scores_are_the_same_in_bfloat16_storage_up_to_its_rounding(tmp_path: Path):
    base = base_folder(tmp_path)
    final = reward_folder(tmp_path, base, LORA)
    stored = Roles(ModelConfig(path=str(base), dtype="bfloat16", compute="bfloat16")).reward_model(source_of(final))
    assert next(decoder_layers(stored)[0].parameters()).dtype == torch.bfloat16
    with torch.no_grad():
        gap = ScoreModel(stored).scores(IDS, ATTENDED) - ScoreModel(roles(base).reward_model(source_of(final))).scores(
            IDS, ATTENDED
        )
    assert 0 < gap.abs().max() < 0.2


def test_a_head_of_several_values_is_refused(tmp_path: Path):
    classifier = with_scalar_head(toy_lm("llama"), PAD)
    classifier.config.num_labels = 3
    classifier.score = nn.Linear(32, 3, bias=False)
    classifier.save_pretrained(tmp_path)
    with pytest.raises(InputError) as error:
        load_classifier(str(tmp_path), "float32")
    assert str(error.value) == (
        f"[RM01] the head of {tmp_path} gives 3 values per text, need 1; fix: train a reward model with num_labels=1"
    )


def test_a_folder_without_a_head_is_refused(tmp_path: Path):
    lm = toy_lm("llama", num_labels=1)
    lm.save_pretrained(tmp_path)
    with pytest.raises(InputError) as error:
        load_classifier(str(tmp_path), "float32")
    assert str(error.value) == (
        f"[RM04] {tmp_path} has no weights for ['score.weight']; fix: give the final/ folder of a reward_model stage"
    )


def test_an_architecture_without_known_projections_names_the_candidates():
    lm = toy_lm("llama")
    for layer in lm.model.layers:
        layer.self_attn.mystery = layer.self_attn.q_proj
        del layer.self_attn.q_proj
    with pytest.raises(InputError) as error:
        peft_config(LORA, lm, TaskType.CAUSAL_LM)
    assert str(error.value) == (
        "[TUNE01] no query and value projections known for LlamaForCausalLM; fix: set tuning.targets to some of "
        "['down_proj', 'gate_proj', 'k_proj', 'mystery', 'o_proj', 'up_proj', 'v_proj']"
    )


def test_a_trunk_of_all_layers_is_refused():
    with pytest.raises(InputError) as error:
        peft_config(LORA, toy_lm("llama"), TaskType.CAUSAL_LM, frozen_layers=2)
    assert str(error.value) == "[TUNE02] trunk.frozen_layers is 2, the model has 2 layers; fix: frozen_layers <= 1"


def test_an_adapter_that_lacks_tensors_is_refused(tmp_path: Path):
    base = base_folder(tmp_path)
    final = sft_adapter(tmp_path, base)
    lm = toy_lm("llama").requires_grad_(False)
    wider = attach_adapter(lm, peft_config(WIDER, lm, TaskType.CAUSAL_LM))
    with pytest.raises(InputError) as error:
        load_adapter_weights(wider, final)
    assert error.value.code == "PEFT02"
    assert str(error.value).startswith(
        f"[PEFT02] {final}: adapter_model.safetensors lacks or misshapes 28 of the adapter's 28 tensors, such as ['"
    )
    assert str(error.value).endswith("; fix: train that stage again")


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [("gpt2", {"c_attn"}), ("llama", {"q_proj", "v_proj"}), ("gpt_neox", {"query_key_value"})],
)
def test_query_and_value_projections_are_found_by_architecture(architecture: str, expected: set[str]):
    config = peft_config(LORA, toy_lm(architecture), TaskType.CAUSAL_LM)
    assert set(config.target_modules) == expected
    assert config.fan_in_fan_out == (architecture == "gpt2")


@each_architecture
def test_only_the_last_layers_are_adapted(architecture: str):
    tuning = TuningConfig(method="lora", r=2, targets="all-linear")
    lm = toy_lm(architecture).requires_grad_(False)
    lm = attach_adapter(lm, peft_config(tuning, lm, TaskType.CAUSAL_LM, frozen_layers=1))
    first, last = decoder_layers(lm)
    assert not any("lora_" in n for n, _ in first.named_parameters())
    assert any("lora_" in n for n, _ in last.named_parameters())


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"r": 3}, False),
        ({"alpha": 8}, False),
        ({"targets": ["v_proj", "q_proj"]}, True),
        ({"targets": "all-linear"}, False),
        ({"rslora": True}, False),
        ({"dropout": 0.1}, True),
    ],
)
def test_an_adapter_is_continued_only_by_its_own_shape(change: dict, same: bool, tmp_path: Path):
    base = base_folder(tmp_path)
    final = sft_adapter(tmp_path, base)
    tuning = TuningConfig(**{"method": "lora", "r": 2, "alpha": 4} | change)
    lm = toy_lm("llama")
    assert same_shape(lm, peft_config(tuning, lm, TaskType.CAUSAL_LM), final) is same


def test_a_source_that_needs_no_merge_is_itself(tmp_path: Path):
    base = base_folder(tmp_path)
    source = source_of(sft_adapter(tmp_path, base))
    assert roles(base).adaptable(source, LORA) is source
    assert roles(base).adaptable(source_of(base), LORA) == ModelSource(str(base))
    assert not (tmp_path / "sft" / "merged").exists()
