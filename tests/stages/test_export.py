"""Plain transformers says of an exported folder what the stage's model says; what cannot be merged leaves nothing."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from pipeline.cli import app, main
from stages import export
from stages.base import InputError
from stages.export import export_merged
from stages.models.config import ModelConfig, TuningConfig
from stages.models.load import load_tokenizer, neutral_generation_config, source_of
from stages.models.publish import publish
from stages.models.roles import Roles
from stages.reward_model.statistics import RewardStatistics
from tests.toy_models import ARCHITECTURES, CHAT_TEMPLATE, EOS, PAD, noise, random_ids, save_toy

METHODS = {
    "full": {},
    "lora": {"method": "lora", "r": 2, "targets": "all-linear"},
    "dora": {"method": "lora", "r": 2, "dora": True},
    "ia3": {"method": "ia3"},
    "adapter": {"method": "adapter"},
    "prefix_tuning": {"method": "prefix_tuning", "virtual_tokens": 3},
    "prompt_tuning": {"method": "prompt_tuning", "virtual_tokens": 3},
    "p_tuning": {"method": "p_tuning", "virtual_tokens": 3},
}
TUNINGS = {name: TuningConfig(**keys) for name, keys in METHODS.items()}
UNMERGEABLE = ("adapter", "prefix_tuning", "prompt_tuning", "p_tuning")
IDS = random_ids(1, 9)
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@torch.no_grad()
def says(model: nn.Module) -> Tensor:
    return model.eval()(IDS).logits


def disturb(model: nn.Module) -> None:
    """As training would, everything that is trainable."""
    for name in [n for n, p in model.named_parameters() if p.requires_grad]:
        noise(model, only=name, scale=0.05)


def policy(folder: Path, method: str, architecture: str = "llama") -> Path:
    """A trained policy, published as the stages do."""
    base = save_toy(folder / "base", architecture)
    torch.manual_seed(0)
    roles, tokenizer = Roles(ModelConfig(path=str(base))), load_tokenizer(source_of(base))
    lm = roles.policy(source_of(base), TUNINGS[method])
    disturb(lm)
    final = folder / "sft" / "final"
    publish(lm, tokenizer, final, roles)
    neutral_generation_config((EOS, 7), tokenizer).save_pretrained(final)
    return final


def reward_model(folder: Path, method: str, architecture: str = "llama") -> Path:
    """A trained reward model with its statistics, published as the stage does."""
    base = save_toy(folder / "base", architecture)
    torch.manual_seed(0)
    roles, tokenizer = Roles(ModelConfig(path=str(base))), load_tokenizer(source_of(base))
    classifier = roles.scorer_to_train(source_of(base), TUNINGS[method], PAD)
    disturb(classifier)
    final = folder / "reward_model" / "final"
    publish(classifier, tokenizer, final, roles)
    RewardStatistics(0.25, 2.0, [[5, 6]], [0.5]).save(final)
    return final


def roles_of(final: Path) -> Roles:
    return Roles(ModelConfig(path=source_of(final).base))


def refusal(*arguments) -> str:
    with pytest.raises(InputError) as caught:
        export_merged(*arguments)
    return str(caught.value)


@each_architecture
@pytest.mark.parametrize("method", ["full", "lora", "dora", "ia3"])
def test_plain_transformers_says_what_the_policy_says(method: str, architecture: str, tmp_path: Path, capsys):
    final, out = policy(tmp_path, method, architecture), tmp_path / "deep" / "out"
    expected = says(roles_of(final).reference(source_of(final)))
    export_merged(final, out)
    plain = AutoModelForCausalLM.from_pretrained(out)
    assert (says(plain) - expected).abs().max() <= 1e-5
    assert (says(AutoModelForCausalLM.from_pretrained(tmp_path / "base")) - expected).abs().max() > 1e-2
    assert plain.dtype == torch.float32
    assert not (out / "adapter_config.json").exists()
    origin = "whole weights" if method == "full" else f"merged from {'IA3' if method == 'ia3' else 'LORA'}"
    pattern = rf"^wrote {re.escape(str(out))}: 0\.\d+ MB, {origin}; largest difference of a logit \d\.\de[-+]\d\d$"
    assert re.search(pattern, capsys.readouterr().out, re.MULTILINE)
    assert [p.name for p in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_tokenizer_template_and_generation_config_go_with_the_weights(method: str, tmp_path: Path):
    export_merged(policy(tmp_path, method), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer("a film").input_ids == AutoTokenizer.from_pretrained(tmp_path / "base")("a film").input_ids
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.do_sample, generation.top_k, generation.eos_token_id) == (True, 0, [EOS, 7])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_bfloat16_halves_the_file_and_rounds_the_logits(method: str, tmp_path: Path):
    final = policy(tmp_path, method)
    export_merged(final, tmp_path / "whole")
    export_merged(final, tmp_path / "half", "bfloat16")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert 0.4 < sizes[1] / sizes[0] < 0.65
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    rounded = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32)
    exact = says(AutoModelForCausalLM.from_pretrained(tmp_path / "whole"))
    assert 0 < (says(rounded) - exact).abs().max() < 0.05 * exact.abs().max()


@each_architecture
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_reward_model_keeps_its_head_and_its_statistics(method: str, architecture: str, tmp_path: Path, capsys):
    final, out = reward_model(tmp_path, method, architecture), tmp_path / "out"
    expected = says(roles_of(final).reward_model(source_of(final)))
    export_merged(final, out)
    plain, report = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert expected.shape == (1, 1) and expected.abs() > 1e-2
    assert (says(plain) - expected).abs().max() <= 1e-5
    assert (out / "reward_model.json").read_bytes() == (final / "reward_model.json").read_bytes()
    assert RewardStatistics.load(out).mean == 0.25
    assert "largest difference of a score" in capsys.readouterr().out


def test_an_exported_reward_model_reads_padded_texts_as_one_by_one(tmp_path: Path):
    export_merged(reward_model(tmp_path, "lora"), tmp_path / "out")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    texts = [[5, 6, 7, EOS], [8, EOS]]
    padded = AutoTokenizer.from_pretrained(tmp_path / "out").pad({"input_ids": texts}, return_tensors="pt")
    with torch.no_grad():
        alone = torch.cat([plain(torch.tensor([text])).logits for text in texts])
        assert (plain(**padded).logits - alone).abs().max() <= 1e-5


@pytest.mark.parametrize("make", [policy, reward_model])
@pytest.mark.parametrize("method", UNMERGEABLE)
def test_what_is_not_linear_in_the_weights_is_refused_and_leaves_nothing(make, method: str, tmp_path: Path):
    final = make(tmp_path, method)
    before = sorted(tmp_path.rglob("*"))
    found = refusal(final, tmp_path / "new" / "out")
    assert found.startswith(f"[PEFT03] {final}: a ") and "; fix: " in found
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_exists_is_never_overwritten(kind: str, tmp_path: Path):
    out = tmp_path / "out"
    {"folder": out.mkdir, "file": out.touch, "dangling link": lambda: out.symlink_to("nothing")}[kind]()
    expected = f"[EXP01] {out} exists already; fix: give --merge another folder"
    assert refusal(tmp_path / "final", out) == expected


@pytest.mark.parametrize("make", [policy, reward_model])
def test_an_adapter_of_another_base_is_refused_and_leaves_nothing(make, tmp_path: Path):
    final = make(tmp_path, "lora")
    shutil.rmtree(tmp_path / "base")
    save_toy(tmp_path / "base", seed=1)
    assert refusal(final, tmp_path / "out").startswith(f"[PEFT01] the adapter {final} was trained on ")
    assert not (tmp_path / "out").exists()


def test_weights_that_say_something_else_are_never_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    final = policy(tmp_path, "lora")
    write = export._write

    def spoiled(model, *arguments):
        noise(model, only="norm", scale=0.5)
        write(model, *arguments)

    monkeypatch.setattr(export, "_write", spoiled)
    assert refusal(final, tmp_path / "out").startswith(f"[EXP02] {tmp_path / 'out'} is not written: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "sft"]


def test_the_command_exports_the_stage_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reward_model(tmp_path, "lora")
    policy(tmp_path, "lora")
    (tmp_path / "config.yaml").write_text("")
    for stage in ("sft", "reward_model"):
        (tmp_path / stage / "stage.json").write_text(json.dumps({"stage": stage, "status": "finished"}))
    for arguments in (["--merge", "a"], ["--merge", "b", "--stage", "reward_model", "--dtype", "bfloat16"]):
        monkeypatch.chdir(tmp_path)
        app(["export", ".", *arguments], standalone_mode=False)
    assert json.loads(Path("a/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert json.loads(Path("b/config.json").read_text())["architectures"] == ["LlamaForSequenceClassification"]
    assert json.loads(Path("b/config.json").read_text())["dtype"] == "bfloat16"


def test_the_command_ends_in_the_message_and_exit_code_of_a_mistake(tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tmp_path), "--merge", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"[PATH01] {tmp_path} is neither a run")
