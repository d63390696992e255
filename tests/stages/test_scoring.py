"""A trained reward model asked about texts: alone, and as an ensemble."""

from pathlib import Path

import pytest

from reward.config import RewardTerm
from stages.base import InputError
from stages.models.config import ModelConfig, TuningConfig
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.members import folders_of
from stages.reward_model.stage import run_reward_model
from stages.scoring import TextScorer
from tests.toy_models import context, save_toy, write_rows

PROMPTS, COMPLETIONS = ["the film", "a plot", "my seat"], [" is good.", " is bad!", ""]


@pytest.fixture(scope="module")
def final(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of one stage on one base."""
    folder = tmp_path_factory.mktemp("ensemble")
    base = save_toy(folder / "base")
    pairs = [{"prompt": s, "chosen": " is good.", "rejected": " is bad!"} for s in (*PROMPTS, "this cast")]
    config = RewardModelConfig(
        members=2, max_steps=2, batch_size=4, microbatch_size=4, learning_rate=1e-2, tuning=TuningConfig(method="lora")
    )
    preferences = write_rows(folder / "preferences.jsonl", pairs)
    services = context(folder / "reward_model")
    return run_reward_model(config, ModelConfig(path=str(base)), preferences, None, None, services, []).final


def test_an_ensemble_is_scored_as_its_members_are_and_combined(final: Path, tmp_path: Path):
    alone = [TextScorer.load(RewardTerm(model=str(folder)), None) for folder in folders_of(final)[1:]]
    mean, least = (TextScorer.load(RewardTerm(model=str(final), combine=how), None) for how in ("mean", "min"))
    (second,) = (scorer(PROMPTS, COMPLETIONS) for scorer in alone)
    middle, lower = mean(PROMPTS, COMPLETIONS), least(PROMPTS, COMPLETIONS)
    first = [2 * m - s for m, s in zip(middle, second, strict=True)]
    assert lower == pytest.approx([min(pair) for pair in zip(first, second, strict=True)], abs=1e-5)
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) > 0.1


def test_a_score_does_not_depend_on_what_it_is_asked_with(final: Path):
    scorer = TextScorer.load(RewardTerm(model=str(final)), None)
    together = scorer(PROMPTS, COMPLETIONS)
    assert together == pytest.approx([scorer([p], [c])[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)], abs=1e-5)


def test_a_text_without_positions_is_named(final: Path):
    scorer = TextScorer.load(RewardTerm(model=str(final)), None)
    assert scorer.limit == 128
    with pytest.raises(InputError, match="LEN01.*sample 1 has 130 tokens, and the reward model has 128 positions"):
        scorer(["a", "a" * 127], ["b", "b"])
