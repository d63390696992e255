"""Each rule is provoked by what it is there for: a real policy, trained by PPO on a reward that goes wrong."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from reward.mixture import FunctionScores, RewardMixture, Term
from stages.models.trunk import NoTrunk
from stages.ppo.evaluation import Evaluator
from stages.ppo.held_out import HeldOut
from stages.ppo.judging import Judge
from stages.ppo.loop import PPOLoop
from stages.ppo.prompts import PromptSet
from stages.ppo.text_metrics import correlation, repeated_ngrams
from stages.ppo.trainer import PPOTrainer
from tests.ppo_checks import small_gpt2, small_tabular
from tests.ppo_toys import Toy, text
from tests.toy_models import MemoryTracker, context

LONG = {"max_new_tokens": 10, "steps": 12, "ppo_epochs": 4, "learning_rate": 2e-2, "kl_coef": 0.0}

HACKED = {"length": {"threshold": 1.3}, "approx_kl": {"patience": 1}}


@dataclass
class Run:
    """A finished run of the walk over iterations."""

    loop: PPOLoop
    tracker: MemoryTracker

    @property
    def alarms(self) -> set[str]:
        return set(self.loop.health.monitor.counts())


def scoring(toy: Toy, score: Callable[[str], float]) -> PPOTrainer:
    """The toy's trainer with a reward of the completion's text alone."""

    def reward(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        return [score(c) for c in completions]

    return replace(toy.trainer, reward=RewardMixture([Term("reward", 1.0, FunctionScores("reward", reward, {}))]))


def walk(folder: Path, toy: Toy, trainer: PPOTrainer, judge: Judge | None = None) -> Run:
    """All iterations of a trainer, with held-out evaluations where there is a judge."""
    prompts = PromptSet(toy.problem.prompts * 12, [text(p) for p in toy.problem.prompts] * 12, {})
    services = context(folder)
    sampler = copy.copy(trainer.sampler)
    sampler.seed = 1
    evaluator = Evaluator(trainer.reference, trainer.reward, sampler, trainer.decode, NoTrunk(), 48)
    held_out = HeldOut(trainer, prompts if judge else None, evaluator, services, publish, judge)
    loop = PPOLoop(trainer, prompts, held_out, services, compute="float32")
    loop.run()
    return Run(loop, services.tracker)


def publish(aside: Path) -> bool:
    (aside / "policy").touch()
    return False


def variety(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """A judge that wants other letters beside `a`."""
    return [float(any(letter != "a" for letter in c)) for c in completions]


@pytest.fixture(scope="module")
def hacked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The reward pays for each `a`, so the policy writes nothing else and never stops; the judge wants variety."""
    toy = small_gpt2(**LONG, kl_budget=2.0, eval_every=3, health=HACKED)
    trainer = scoring(toy, lambda completion: float(completion.count("a")))
    return walk(tmp_path_factory.mktemp("hacked"), toy, trainer, Judge("variety", variety))


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The reward pays for brevity."""
    toy = small_gpt2(**LONG | {"learning_rate": 1e-2}, max_empty_fraction=1.0, health={"score_length": {"patience": 2}})
    return walk(tmp_path_factory.mktemp("brief"), toy, scoring(toy, lambda completion: -float(len(completion))))


@pytest.mark.parametrize(
    "rule",
    [
        "kl_over_budget", "approx_kl", "clip_fraction", "entropy", "length", "stopped_fraction",
        "unique_completions", "repetition", "overoptimisation",
    ],
)  # fmt: skip
def test_a_reward_that_pays_for_one_letter_raises(hacked: Run, rule: str):
    assert rule in hacked.alarms


@pytest.mark.parametrize("rule", ["length", "empty_completions", "score_length"])
def test_a_reward_that_pays_for_brevity_raises(brief: Run, rule: str):
    assert rule in brief.alarms


def test_the_metrics_show_what_the_alarms_say(hacked: Run):
    texts = [row["completion"] for row in hacked.tracker.rows if row["step"] == 12]
    assert texts.count("a" * 10) >= 20
    last = hacked.tracker.series
    assert last("rollout/unique_fraction")[-1] == len(set(texts)) / 24
    assert last("rollout/repeated_4grams")[-1] == pytest.approx(6 / 7, abs=0.1)
    assert last("eval/judge")[0] > 0.8 and last("eval/judge")[-1] < 0.3
    assert last("eval/score")[-1] > last("eval/score")[0]
    assert last("health/alarms")[-1] >= 5
    assert last("health/repetition")[0] == 0.0 and last("health/repetition")[-1] == 1.0


def test_the_headline_counts_the_alarms_and_their_file_has_each_once(hacked: Run):
    headline = hacked.loop.finish().headline
    rows = [json.loads(line) for line in (hacked.loop.context.folder / "alarms.jsonl").read_text().splitlines()]
    assert {f"alarms/{row['rule']}" for row in rows} == {name for name in headline if name.startswith("alarms/")}
    assert len(rows) == sum(n for name, n in headline.items() if name.startswith("alarms/"))
    repetition = next(row for row in rows if row["rule"] == "repetition")
    assert repetition["reading"].startswith("rollout/repeated_4grams above its start is 0.")
    assert repetition["over"] is None and repetition["acted"] == []


def test_a_calm_run_raises_no_alarm(tmp_path: Path):
    toy = small_gpt2(**LONG | {"learning_rate": 1e-3, "kl_coef": 0.5, "steps": 8}, kl_budget=2.0, eval_every=4)
    trainer = scoring(toy, lambda completion: float("a" in completion))
    calm = walk(tmp_path, toy, trainer, Judge("variety", variety))
    assert calm.alarms <= {"stopped_fraction", "explained_variance"}  # an untrained model has learned neither
    assert calm.tracker.series("objective/score")[-1] > 0


def test_a_sampler_that_keeps_the_weights_of_the_start_gives_a_negative_kl(tmp_path: Path):
    toy = small_tabular(learning_rate=0.3, steps=6, kl_coef=0.0)
    stale, sampler = toy.trainer.reference.lm, toy.trainer.sampler
    trainer = replace(toy.trainer, sampler=lambda lm, *rest: sampler(stale, *rest))
    prompts = PromptSet(toy.problem.prompts, ["d", "e"], {})
    services = context(tmp_path)
    loop = PPOLoop(trainer, prompts, HeldOut(trainer, None, None, services, publish), services, compute="float32")
    loop.run()
    assert "kl_below_zero" in loop.health.monitor.counts()


def test_updates_that_target_kl_ends_early_raise_an_alarm(tmp_path: Path):
    toy = small_tabular(learning_rate=0.5, target_kl=1e-3)
    assert "skipped_updates" in walk(tmp_path, toy, toy.trainer).alarms


def test_a_value_model_that_does_not_learn_raises_an_alarm(tmp_path: Path):
    toy = small_tabular(value_learning_rate=1e-9, steps=6, health={"explained_variance": {"patience": 4}})
    toy.trainer.value.module.classifier.score.weight.data.mul_(10)
    assert "explained_variance" in walk(tmp_path, toy, toy.trainer).alarms


def test_repeated_ngrams_are_counted_within_each_completion():
    ids = torch.tensor([[1, 2, 1, 2, 1, 9], [3, 4, 5, 6, 7, 8], [1, 2, 9, 9, 9, 9]])
    mask = torch.tensor([[True] * 5 + [False], [True] * 6, [True] * 2 + [False] * 4])
    assert repeated_ngrams(ids, mask, 2) == 2 / (4 + 5 + 1)
    assert repeated_ngrams(ids[2:], mask[2:], 4) == 0.0


def test_the_correlation_of_a_line_is_one_and_of_a_constant_zero():
    a = torch.tensor([1.0, 2.0, 4.0])
    assert correlation(a, 3 - 2 * a) == pytest.approx(-1.0)
    assert correlation(a, torch.ones(3)) == 0.0
    assert correlation(a[:0], a[:0]) == 0.0
