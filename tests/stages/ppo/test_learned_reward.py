"""Reward models of all kinds beside a LoRA policy: whole weights, another base, another tokenizer and template."""

from pathlib import Path

import pytest
import torch

from reward.config import RewardTerm
from reward.learned import ModelScores, RereadScores
from reward.mixture import Texts
from stages.base import StageResult
from stages.models.config import ModelConfig, TuningConfig
from stages.models.load import load_tokenizer, source_of
from stages.models.roles import Roles
from stages.ppo.config import PPOConfig
from stages.ppo.learned_reward import LearnedReward
from stages.ppo.stage import run_ppo
from stages.render import Renderer
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.stage import run_reward_model
from stages.reward_model.statistics import RewardStatistics, raw_scores
from tests.toy_models import CHAT_TEMPLATE, MemoryTracker, context, save_toy, toy_tokenizer, write_rows

LORA = {"method": "lora", "r": 2}
FULL = {"method": "full"}
STARTS = ("the film", "a plot", "my seat", "this cast")
TERM = RewardTerm(model="reward_model")
OTHER_TEMPLATE = CHAT_TEMPLATE.replace("m['role'][:1] + ':'", "m['role'] + '. '").replace("a:{%", "assistant. {%")


def policy_base(folder: Path) -> Path:
    return save_toy(folder / "policy")


def trained_reward_model(folder: Path, path: Path, tuning: dict) -> StageResult:
    """A reward model with a base of its own, by the real stage."""
    pairs = [{"prompt": s, "chosen": " is good.", "rejected": " is bad!"} for s in STARTS]
    config = RewardModelConfig(
        path=str(path), tuning=TuningConfig(**tuning), max_steps=2, batch_size=4, microbatch_size=4, learning_rate=1e-2
    )
    preferences = write_rows(folder / "preferences.jsonl", pairs)
    services = context(folder / "reward_model")
    return run_reward_model(config, ModelConfig(path="unused"), preferences, None, None, services, [])


def ppo(folder: Path, base: Path, reward_model: Path) -> MemoryTracker:
    """Two PPO iterations with LoRA on that reward model; what they logged."""
    prompts = write_rows(folder / "prompts.jsonl", [{"prompt": s} for s in STARTS])
    sizes = {"rollout_batch_size": 4, "minibatch_size": 4, "microbatch_size": 4}
    config = PPOConfig(tuning=TuningConfig(**LORA), steps=2, max_new_tokens=6, learning_rate=1e-2, **sizes)
    services = context(folder / "ppo")
    run_ppo(config, ModelConfig(path=str(base)), prompts, None, None, [TERM], None, reward_model, services)
    return services.tracker


@pytest.mark.parametrize("tuning", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_reward_model_of_another_base_that_reads_the_same_ids(architecture: str, tuning: dict, tmp_path: Path):
    base, other = policy_base(tmp_path), save_toy(tmp_path / "other", architecture, seed=7)
    final = trained_reward_model(tmp_path, other, tuning).final
    learned = LearnedReward(final, TERM, Roles(ModelConfig(path=str(base))), "float32")
    assert isinstance(learned.as_source(load_tokenizer(source_of(base))), ModelScores)
    tracker = ppo(tmp_path, base, final)
    assert tracker.series("objective/kl")[0] == 0.0
    assert tracker.series("value/explained_variance")[0] != 0.0, "the value model starts as the reward model"
    assert len(tracker.series("objective/score")) == 2


@pytest.mark.parametrize("tuning", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("difference", ["template", "vocabulary"])
def test_a_reward_model_with_its_own_template_or_vocabulary_reads_decoded_texts(
    difference: str, tuning: dict, tmp_path: Path, capsys: pytest.CaptureFixture
):
    tokenizer = toy_tokenizer(**({"chat_template": OTHER_TEMPLATE} if difference == "template" else {}))
    if difference == "vocabulary":
        tokenizer.add_tokens(["film"])  # one id where the policy has four
    base, other = policy_base(tmp_path), save_toy(tmp_path / "other", "gpt2", 7, tokenizer, vocab_size=40)
    final = trained_reward_model(tmp_path, other, tuning).final
    learned = LearnedReward(final, TERM, Roles(ModelConfig(path=str(base))), "float32")
    own = load_tokenizer(source_of(base))
    assert not learned.reads(own)
    term = learned.as_source(own)
    assert isinstance(term, RereadScores)
    assert capsys.readouterr().out.count("completions are decoded and rendered again for it") == 1

    prompts = ["the film", [{"role": "user", "content": "a plot"}]]
    scores = term(Texts(prompts, [" is good.", " was sad"], {}), lambda model: None)
    render = Renderer(learned.tokenizer)
    texts = [render.pair(p, c).ids for p, c in zip(prompts, (" is good.", " was sad"), strict=True)]
    assert texts != [Renderer(own).pair(p, c).ids for p, c in zip(prompts, (" is good.", " was sad"), strict=True)]
    statistics = RewardStatistics.load(final)
    raw = raw_scores(learned.scorer, texts, learned.tokenizer.pad_token_id, 2)
    assert torch.allclose(scores, torch.tensor(raw))
    assert statistics.std > 0

    tracker = ppo(tmp_path, base, final)
    assert tracker.series("objective/kl")[0] == 0.0
    assert all(abs(score) < 1e3 for score in tracker.series("objective/score"))
