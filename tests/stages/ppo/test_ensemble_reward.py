"""PPO on several reward models: scores, disagreement, the value model's start, one base in memory, a shared trunk."""

from pathlib import Path

import pytest
import torch

from reward.config import RewardTerm
from reward.learned import EnsembleScores
from stages.models.config import ModelConfig, TrunkConfig, TuningConfig
from stages.models.load import load_tokenizer, source_of
from stages.models.roles import Roles
from stages.models.trunk import inner_model
from stages.ppo.builder import PPOBuilder
from stages.ppo.config import PPOConfig
from stages.ppo.stage import run_ppo
from stages.render import Renderer
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.members import folders_of
from stages.reward_model.stage import run_reward_model
from stages.reward_model.statistics import RewardStatistics, raw_scores
from tests.toy_models import PAD, MemoryTracker, context, save_toy, write_rows

LORA = TuningConfig(method="lora", r=2)
STARTS = ("the film", "a plot", "my seat", "this cast")
ONE_FROZEN = TrunkConfig(frozen_layers=1)
CONFIG = PPOConfig(
    tuning=LORA, steps=1, max_new_tokens=16, learning_rate=1e-2, rollout_batch_size=64, minibatch_size=64,
    microbatch_size=64, missing_eos={"mode": "off"}, max_empty_fraction=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base, and the `final/` of a stage with three reward models on it."""
    folder = tmp_path_factory.mktemp("ensemble")
    base = save_toy(folder / "base")
    pairs = [{"prompt": s, "chosen": " is good.", "rejected": " is bad!"} for s in STARTS]
    config = RewardModelConfig(
        members=3, tuning=LORA, max_steps=2, batch_size=4, microbatch_size=4, learning_rate=1e-2, checkpoint_every=0
    )
    preferences, services = write_rows(folder / "pairs.jsonl", pairs), context(folder / "reward_model")
    model = ModelConfig(path=str(base))
    return base, run_reward_model(config, model, preferences, None, None, services, [], ONE_FROZEN).final


def builder(base: Path, final: Path, term: RewardTerm, trunk: TrunkConfig = ONE_FROZEN) -> PPOBuilder:
    return PPOBuilder(CONFIG, ModelConfig(path=str(base)), [term], None, final, 0, trunk)


def ppo(folder: Path, base: Path, final: Path, term: RewardTerm) -> MemoryTracker:
    prompts = write_rows(folder / "prompts.jsonl", [{"prompt": s} for s in STARTS] * 16)
    services = context(folder / "ppo")
    run_ppo(CONFIG, ModelConfig(path=str(base)), prompts, None, None, [term], None, final, services, ONE_FROZEN)
    return services.tracker


def centred(base: Path, finals: list[Path], rows: list[dict]) -> torch.Tensor:
    """What each reward model by itself says of finished completions, less its mean of demonstrations: [M, B]."""
    renderer, roles = Renderer(load_tokenizer(source_of(base))), Roles(ModelConfig(path=str(base)))
    ids = [renderer.pair(row["prompt"], row["completion"]).ids for row in rows]
    found = []
    for final in finals:
        scorer = builder(base, final, RewardTerm(model=str(final))).rewards.scorers[0]
        raw = type(scorer)(roles.reward_model(source_of(final)))
        found.append(torch.tensor(raw_scores(raw, ids, PAD, 4)) - RewardStatistics.load(final).mean)
    return torch.stack(found)


@pytest.mark.parametrize("way", ["a stage with members", "a list of folders"])
def test_ppo_maximises_what_the_members_say_by_themselves(way: str, trained: tuple[Path, Path], tmp_path: Path):
    base, final = trained
    finals = folders_of(final)
    named = "reward_model" if way == "a stage with members" else [str(f) for f in finals[1:]]
    finals = finals if way == "a stage with members" else finals[1:]
    tracker = ppo(tmp_path, base, final, RewardTerm(model=named, combine="mean_minus_std", k=0.5))
    renderer = Renderer(load_tokenizer(source_of(base)))
    stopped = [r for r in tracker.rows if r["stopped"] and len(renderer.completion(r["completion"])) == r["length"]]
    assert stopped, "no completion ended by itself and is the same ids when it is read again"
    each = centred(base, finals, stopped)
    expected = each.mean(0) - 0.5 * each.std(0, correction=0)
    assert [row["terms"]["model"] for row in stopped] == pytest.approx(expected.tolist(), abs=1e-4)
    assert [row["score"] for row in stopped] == pytest.approx(expected.tolist(), abs=1e-4)
    apart = each.std(0, correction=0).tolist()
    assert [row["terms"]["model_disagreement"] for row in stopped] == pytest.approx(apart, abs=1e-4)
    assert max(apart) > 0.1
    told = tracker.series("objective/term/model_disagreement")
    assert told == [pytest.approx(sum(r["terms"]["model_disagreement"] for r in tracker.rows) / len(tracker.rows))]


def test_members_share_one_base_and_one_trunk_and_the_value_model_starts_as_the_first(trained: tuple[Path, Path]):
    base, final = trained
    made = builder(base, final, RewardTerm(model="reward_model", combine="min"))
    (term,) = made.rewards.mixture.terms
    assert isinstance(term.source, EnsembleScores) and len(term.source.members) == len(made.rewards.scorers) == 3
    embeddings = [inner_model(s.classifier).get_input_embeddings().weight for s in made.rewards.scorers]
    assert all(weight is embeddings[0] for weight in embeddings)
    trainer = made.trainer(None)
    first = made.rewards.scorers[0]
    ids = torch.randint(4, 30, (3, 9))
    attended = torch.ones_like(ids, dtype=torch.bool)
    assert trainer.value.module(ids, attended).equal(first(ids, attended))
    trunk = trainer.trunk
    trunk.begin(*ids.shape)
    with trunk.recording():
        whole = [first(ids, attended)]
    whole += [s(ids, attended) for s in made.rewards.scorers[1:]]
    other = torch.zeros_like(ids) + 5
    with trunk.replaying():  # the trunk's layers do not look at these ids
        replayed = [s(other, attended) for s in made.rewards.scorers]
    assert all(a.allclose(b, atol=1e-6) for a, b in zip(replayed, whole, strict=True))
