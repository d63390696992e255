"""Each PPO method after each SFT method: where the policy starts, what the reference says, what is refused."""

from itertools import product
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from stages.base import InputError
from stages.models.config import ModelConfig, TuningConfig
from stages.models.heads import PolicyModel
from stages.models.load import source_of
from stages.models.publish import publish
from stages.models.roles import Roles
from tests.toy_models import ARCHITECTURES, noise, random_ids, save_toy, toy_tokenizer

METHODS = {
    "full": {},
    "lora": {"r": 2},
    "dora": {"method": "lora", "r": 2, "dora": True},
    "houlsby": {"method": "adapter"},
    "pfeiffer": {"method": "adapter", "placement": "pfeiffer"},
    "prefix": {"method": "prefix_tuning", "virtual_tokens": 3},
    "projected prefix": {"method": "prefix_tuning", "virtual_tokens": 3, "projection": True},
    "prompt": {"method": "prompt_tuning", "virtual_tokens": 3},
    "lstm prompt": {"method": "p_tuning", "virtual_tokens": 3},
    "mlp prompt": {"method": "p_tuning", "virtual_tokens": 3, "encoder": "mlp"},
    "ia3": {},
}
TUNINGS = {name: TuningConfig(**{"method": name, **keys}) for name, keys in METHODS.items()}
MERGEABLE = ("full", "lora", "dora", "ia3")
OF_VIRTUAL_TOKENS = ("prefix", "projected prefix", "prompt", "lstm prompt", "mlp prompt")
EXACT = [
    (sft, ppo)
    for sft, ppo in product(METHODS, METHODS)
    if sft == ppo or (sft in MERGEABLE and ppo not in OF_VIRTUAL_TOKENS)
]
IDS = random_ids(3, 9)
ATTENDED = torch.ones(3, 9, dtype=torch.bool)
ATTENDED[1, :2] = False


def trained_sft(folder: Path, method: str, architecture: str) -> tuple[Path, Path]:
    """A base, and the final/ of an SFT by that method on it."""
    base = save_toy(folder / "base", architecture)
    torch.manual_seed(0)
    roles = Roles(ModelConfig(path=str(base)))
    policy = roles.policy(source_of(base), TUNINGS[method])
    for index, parameter in enumerate(p for p in policy.parameters() if p.requires_grad):
        with torch.no_grad():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    publish(policy, toy_tokenizer(), folder / "sft" / "final", roles)
    return base, folder / "sft" / "final"


@torch.no_grad()
def logprobs(lm: nn.Module) -> Tensor:
    return PolicyModel(lm.eval())(IDS, ATTENDED, ATTENDED[:, 4:]).logprobs


@torch.no_grad()
def plain_logprobs(final: Path) -> Tensor:
    """By transformers and PEFT alone, row by row without padding; virtual tokens' own logits are cut off."""
    load = AutoPeftModelForCausalLM if (final / "adapter_config.json").is_file() else AutoModelForCausalLM
    model, rows = load.from_pretrained(final).eval(), []
    for ids, attended in zip(IDS, ATTENDED, strict=True):
        logits = model(ids[attended].unsqueeze(0)).logits[0, -int(attended.sum()) :]
        rows.append(logits.log_softmax(-1)[:-1].gather(1, ids[attended][1:, None])[-5:, 0])
    return torch.stack(rows)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("sft", "ppo"), EXACT, ids=lambda method: method)
def test_ppo_starts_at_kl_zero_to_what_plain_peft_says_of_the_sft_model(
    sft: str, ppo: str, architecture: str, tmp_path: Path
):  # 11
    base, final = trained_sft(tmp_path, sft, architecture)
    assert TUNINGS[ppo].starts_at(TUNINGS[sft])
    roles = Roles(ModelConfig(path=str(base)))
    start = roles.adaptable(source_of(final), TUNINGS[ppo])
    reference = logprobs(roles.reference(start))
    policy = roles.policy(start, TUNINGS[ppo])
    assert torch.equal(logprobs(policy), reference)
    assert (reference - plain_logprobs(final)).abs().max() <= 2e-5
    assert (reference - plain_logprobs(base)).abs().max() > 1e-3, "the SFT must have changed something"
    assert any(p.requires_grad for p in policy.parameters())


@pytest.mark.parametrize(("sft", "ppo"), sorted(set(product(METHODS, METHODS)) - set(EXACT)))
def test_every_other_pair_is_said_not_to_start_there(sft: str, ppo: str):
    assert not TUNINGS[ppo].starts_at(TUNINGS[sft])
    assert TUNINGS[ppo].can_follow(TUNINGS[sft]) == (sft in MERGEABLE)


@pytest.mark.parametrize("sft", sorted(set(METHODS) - set(MERGEABLE)))
def test_an_adapter_that_cannot_be_merged_is_not_lost_on_the_way(sft: str, tmp_path: Path):
    base, final = trained_sft(tmp_path, sft, "llama")
    with pytest.raises(
        InputError, match=r"^\[PEFT03\] .* cannot be merged into weights .*; fix: use that folder as it is"
    ):
        Roles(ModelConfig(path=str(base))).policy(source_of(final), TUNINGS["lora"])


def test_only_the_adapter_is_copied_when_ppo_continues_it(tmp_path: Path):
    base, final = trained_sft(tmp_path, "houlsby", "gpt2")
    roles = Roles(ModelConfig(path=str(base)))
    source = source_of(final)
    policy, reference = roles.policy(source, TUNINGS["houlsby"]), roles.reference(source)
    before = logprobs(reference)
    noise(policy, only="bottleneck_")
    assert torch.equal(logprobs(reference), before)
    shared = {p.data_ptr() for n, p in policy.named_parameters() if "bottleneck_" not in n}
    assert shared == {p.data_ptr() for n, p in reference.named_parameters() if "bottleneck_" not in n}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prefix_that_starts_at_a_text_is_that_text(architecture: str, tmp_path: Path):
    base = save_toy(tmp_path / "base", architecture)
    roles = Roles(ModelConfig(path=str(base)))
    tuning = TuningConfig(method="prefix_tuning", virtual_tokens=9, init_text="a film")
    words = torch.tensor(toy_tokenizer()("a filma f", add_special_tokens=False).input_ids)  # repeated and cut
    ids, mask = torch.cat([words.expand(3, -1), IDS], 1), torch.ones(3, 18, dtype=torch.bool)
    with torch.no_grad():
        spelt = PolicyModel(roles.frozen_base(str(base)))(ids, mask, mask[:, 13:]).logprobs
        prefixed = PolicyModel(roles.policy(source_of(base), tuning))(IDS, mask[:, 9:], mask[:, 13:]).logprobs
    assert (prefixed - spelt).abs().max() <= 1e-5
