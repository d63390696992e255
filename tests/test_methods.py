"""Every fine-tuning method in every stage, by `rlhf stage`: trains, saves, reloads, resumes, chains."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.llama.modeling_llama import LlamaMLP

import stages.models.publish
from pipeline.config_loading import load_config
from pipeline.rundir import RunDir
from pipeline.stage_process import run_stage
from stages.models.config import ModelConfig
from stages.models.heads import ScoreModel, hidden_states
from stages.models.load import source_of
from stages.models.roles import Roles
from tests.toy_models import random_ids, save_toy, write_rows

METHODS = {
    "full": "{method: full}",
    "adapter": "{method: adapter}",
    "prefix_tuning": "{method: prefix_tuning, virtual_tokens: 3, projection: true}",
    "prompt_tuning": "{method: prompt_tuning, virtual_tokens: 3, init_text: a film}",
    "p_tuning": "{method: p_tuning, virtual_tokens: 3, encoder_size: 4}",
    "lora": "{method: lora, r: 4}",
    "ia3": "{method: ia3}",
}
STAGES = ("sft", "reward_model", "ppo")
CONFIG = """\
run: {{name: methods, root: {root}}}
seed: 3
model: {{path: {base}}}
data:
  demonstrations: {{train: {root}/demonstrations.jsonl, eval: {root}/demonstrations.jsonl}}
  preferences: {{train: {root}/preferences.jsonl, eval: {root}/preferences.jsonl}}
  prompts: {{train: {root}/prompts.jsonl}}
sft: {{tuning: {tuning}, max_steps: 4, learning_rate: 1e-2, batch_size: 4, microbatch_size: 2, max_length: 32,
  checkpoint_every: 2, keep_checkpoints: 2, log_every: 1, samples: 1, sample_tokens: 4}}
reward_model: {{tuning: {tuning}, max_steps: 4, learning_rate: 1e-2, batch_size: 4, microbatch_size: 2,
  max_length: 32, checkpoint_every: 2, log_every: 1}}
ppo: {{tuning: {tuning}, steps: 4, rollout_batch_size: 4, minibatch_size: 2, microbatch_size: 2, ppo_epochs: 2,
  max_prompt_tokens: 12, max_new_tokens: 6, learning_rate: 1e-2, checkpoint_every: 2}}
"""
STARTS = ("the film", "a plot", "my seat", "this cast")
IDS = random_ids(2, 8)


@dataclass
class Seen:
    """Weights of the model that a stage trains, when it was made and when it was published."""

    start: dict[str, Tensor]
    end: dict[str, Tensor] = field(default_factory=dict)
    trainable: set[str] = field(default_factory=set)
    states: Tensor | None = None
    """Last hidden states of IDS at publication [2, 8, H]."""


@dataclass
class Chain:
    """A finished run of three stages, and what was seen of each one's model."""

    method: str
    base: Path
    run: RunDir
    seen: dict[str, Seen]

    def final(self, stage: str) -> Path:
        return self.run.stage(stage).final

    def metrics(self, stage: str, name: str) -> list[float]:
        rows = map(json.loads, (self.run.stage(stage).path / "metrics.jsonl").read_text().splitlines())
        return [row[name] for row in rows if name in row]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def watch(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """Look at each trained model where the stages make it and where they publish it."""
    found: list[Seen] = []
    models: dict[int, Seen] = {}

    def watched(make: Callable) -> Callable:
        def maker(*arguments: Any) -> nn.Module:
            model = make(*arguments)
            models[id(model)] = Seen(
                weights(model), trainable={n for n, p in model.named_parameters() if p.requires_grad}
            )
            return model

        return maker

    def publish(model: nn.Module, *arguments: Any) -> None:
        seen = models[id(model)]
        seen.end = weights(model)
        with torch.no_grad():
            seen.states = hidden_states(model.eval(), IDS, torch.ones_like(IDS, dtype=torch.bool))
        original(model, *arguments)
        found.append(seen)

    original = stages.models.publish.publish
    for role in ("policy", "scorer_to_train"):
        monkeypatch.setattr(Roles, role, watched(getattr(Roles, role)))
    for module in ("stages.sft.stage", "stages.reward_model.stage", "stages.ppo.builder"):
        monkeypatch.setattr(f"{module}.publish", publish)
    return found


@pytest.fixture(scope="module", params=METHODS)
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    root = tmp_path_factory.mktemp(request.param)
    base = save_toy(root / "base")
    demonstrations = [{"prompt": s, "completion": c} for s in STARTS for c in (" is good.", " is bad!")]
    write_rows(root / "demonstrations.jsonl", demonstrations)
    pairs = [{"prompt": s, "chosen": " is good.", "rejected": c} for s in STARTS for c in (" is bad!", " was sad")]
    write_rows(root / "preferences.jsonl", pairs)
    write_rows(root / "prompts.jsonl", [{"prompt": s} for s in STARTS])
    (root / "config.yaml").write_text(CONFIG.format(root=root, base=base, tuning=METHODS[request.param]))
    run = RunDir.create(load_config(root / "config.yaml"), ["test"])
    with pytest.MonkeyPatch.context() as monkeypatch:
        seen = watch(monkeypatch)
        for stage in STAGES:
            assert run_stage(run, stage) == 0
    yield Chain(request.param, base, run, dict(zip(STAGES, seen, strict=True)))


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_trainable_moved_and_nothing_else_did(chain: Chain, stage: str):
    seen = chain.seen[stage]
    moved = {name for name, tensor in seen.end.items() if not torch.equal(tensor, seen.start[name])}
    assert moved == seen.trainable
    if chain.method == "full":
        assert moved == set(seen.start)
    else:
        assert sum(seen.end[n].numel() for n in moved) < 0.5 * sum(t.numel() for t in seen.end.values())
    assert chain.run.stage(stage).manifest["base"]["id"] == str(chain.base)


@pytest.mark.parametrize("stage", STAGES)
@torch.no_grad()
def test_plain_transformers_and_peft_reload_the_same_outputs(chain: Chain, stage: str):
    final, scalar = chain.final(stage), stage == "reward_model"
    assert ((final / "adapter_config.json").is_file(), (final / "base.json").is_file()) == (chain.method != "full",) * 2
    if chain.method == "full":
        kind = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
        model = kind.from_pretrained(final)
    else:
        kind = AutoPeftModelForSequenceClassification if scalar else AutoPeftModelForCausalLM
        model = kind.from_pretrained(final, **({"num_labels": 1, "pad_token_id": 0} if scalar else {}))
    outputs = model.eval()(IDS).logits
    head = scoring_head(model) if scalar else model.get_output_embeddings()
    expected = head(chain.seen[stage].states)
    expected = expected[:, -1] if scalar else expected
    assert (outputs[:, -expected.shape[1] :] - expected).abs().max() <= 2e-5


def scoring_head(model: nn.Module) -> nn.Module:
    return (model.get_base_model() if isinstance(model, PeftModel) else model).score


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_stage_goes_on_to_the_same_bits(chain: Chain, stage: str, tmp_path: Path):
    run = RunDir(tmp_path / "methods")
    shutil.copytree(chain.run.path, run.path)
    folder = run.stage(stage)
    finished = folder.manifest
    folder.write_manifest(finished | {"status": "running"})
    shutil.rmtree(folder.final)
    shutil.rmtree(folder.checkpoints / "step-000004")
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000002"]
    assert run_stage(run, stage) == 0
    assert (folder.checkpoints / "step-000004").is_dir()
    assert folder.manifest["final_hash"] == finished["final_hash"]


@torch.no_grad()
def test_the_value_model_of_ppo_starts_at_the_reward_model(chain: Chain):
    roles, source = Roles(ModelConfig(path=str(chain.base))), source_of(chain.final("reward_model"))
    tuning = chain.run.config().ppo.tuning
    attended = torch.ones_like(IDS, dtype=torch.bool)
    score = ScoreModel(roles.reward_model(source))(IDS, attended)
    assert torch.equal(ScoreModel(roles.value_from_reward_model(source, tuning))(IDS, attended), score)
    assert score.std() > 1e-2


def test_ppo_starts_at_kl_zero(chain: Chain):
    assert chain.metrics("ppo", "objective/kl")[0] == 0.0
    assert chain.metrics("ppo", "objective/kl_k3")[0] == 0.0
    assert chain.metrics("ppo", "policy/ratio_first")[0] <= 1e-5
    assert len(chain.metrics("ppo", "objective/kl")) == 4
    assert chain.metrics("ppo", "objective/kl")[3] != 0.0


def test_recomputed_activations_give_ppo_the_same_bits(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, hidden: calls.append(1) or forward(self, hidden))
    shutil.copytree(chain.run.path, tmp_path / "methods")
    counts = []
    for recompute in ("false", "true"):
        overrides = [f"run.root={tmp_path}", f"ppo.gradient_checkpointing={recompute}"]
        run = RunDir.create(load_config(chain.run.config_file, overrides), ["test"])
        calls.clear()
        assert run_stage(run, "ppo", force=True) == 0
        counts.append(len(calls))
        assert run.stage("ppo").manifest["final_hash"] == chain.run.stage("ppo").manifest["final_hash"]
    # 4 steps of 2 epochs of 2 minibatches, policy and value model, 2 layers each: 64 layers computed once more
    assert counts[1] - counts[0] == 64


def test_each_stage_begins_where_sft_ended(chain: Chain):
    sft, later = chain.seen["sft"], [chain.seen["reward_model"], chain.seen["ppo"]]
    heads = ("score", "lm_head")
    for seen in later:
        shared = {name for name in seen.start if name in sft.end and not any(head in name for head in heads)}
        assert len(shared) >= len(sft.end) - 2
        assert all(torch.equal(seen.start[name], sft.end[name]) for name in shared)


def test_an_adapter_on_disk_is_small(chain: Chain):
    def size(folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.glob("*.safetensors"))

    for stage in STAGES:
        whole = (chain.final(stage) / "model.safetensors").exists()
        assert whole == (chain.method == "full")
        assert whole or size(chain.final(stage)) < size(chain.base)
