"""Terms of the reward in the PPO stage: what is logged, what PPO uses, what a resumed run and an evaluation see."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import EvaluationConfig
from reward.base import RewardError
from reward.config import RewardTerm
from reward.mixture import RewardMixture, Term
from reward.scales import RunningScale
from stages.base import StageContext
from stages.evaluation import run_evaluation
from stages.models.config import ModelConfig
from stages.ppo.config import PPOConfig
from stages.ppo.evaluation import Completions, Evaluator
from stages.ppo.held_out import Best, HeldOut
from stages.ppo.scoring import Scored, require_sum, term_metrics
from stages.ppo.stage import run_ppo
from tests.ppo_checks import small_tabular
from tests.ppo_toys import decode
from tests.toy_models import context, save_toy, write_rows

TERMS = [
    RewardTerm(metric="length", arguments={"target": 9, "unit": "characters"}, normalise="running_centred", clip=1.5),
    RewardTerm(metric="chrf", reference="answer", weight=2.0, normalise="running", name="like"),
    RewardTerm(metric="repetition", arguments={"n": 1}, weight=-0.5, normalise={"mean": 0.5, "std": 0.25}),
]
ROWS = [
    {"prompt": f"{a} {b}", "answer": answer} for a in "abcd" for b, answer in (("film", "a good film"), ("no", None))
]
CONFIG = PPOConfig(
    steps=4, rollout_batch_size=8, minibatch_size=8, microbatch_size=8, ppo_epochs=1, max_prompt_tokens=12,
    max_new_tokens=8, learning_rate=3e-3, checkpoint_every=1, keep_checkpoints=9, eval_every=1, eval_prompts=8,
    missing_eos={"mode": "off"}, max_empty_fraction=1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished PPO stage."""

    base: Path
    rows: Path
    context: StageContext

    def metrics(self, after: int = -1) -> list[dict[str, float]]:
        timed = ("time/", "rollout/tokens_per_second")
        logged = [row for row in self.context.tracker.metrics if row["step"] > after]
        return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in logged]

    @property
    def samples(self) -> list[dict[str, Any]]:
        return self.context.tracker.rows

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.context.folder / "final" / "model.safetensors")


def run(base: Path, rows: Path, services: StageContext) -> Run:
    run_ppo(CONFIG, ModelConfig(path=str(base)), rows, rows, None, TERMS, None, None, services)
    return Run(base, rows, services)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("terms")
    return run(save_toy(folder / "base"), write_rows(folder / "rows.jsonl", ROWS), context(folder / "ppo", seed=1))


def expected(terms: dict[str, float | None], scales: dict[str, dict[str, float]]) -> float:
    """The score of a sample, from what its row says and the moments of the running scales."""
    std = {name: (m["squares"] / m["count"]) ** 0.5 for name, m in scales.items()}
    length = (terms["length"] - scales["length"]["mean"]) / std["length"]
    like = 0.0 if terms["like"] is None else 2 * terms["like"] / std["like"]
    return max(-1.5, min(1.5, length)) + like - 0.5 * (terms["repetition"] - 0.5) / 0.25


def test_each_sample_keeps_what_every_source_said_and_none_where_it_does_not_apply(finished: Run):
    for row in finished.samples:
        assert list(row["terms"]) == ["length", "like", "repetition"]
        assert row["terms"]["length"] == pytest.approx(max(0.0, 1 - abs(len(row["completion"]) - 9) / 9))
        assert (row["terms"]["like"] is None) == row["prompt"].endswith("no")


def test_scores_are_made_of_these_terms_by_the_moments_so_far(finished: Run):
    """The moments after each step, recomputed from the samples of all steps up to it."""
    for step in range(1, CONFIG.steps + 1):
        seen = [row["terms"] for row in finished.samples if row["step"] <= step and "episode" in row]
        scales = {name: moments_of([t[name] for t in seen if t[name] is not None]) for name in ("length", "like")}
        for row in finished.samples:
            if row["step"] == step and "episode" in row:
                assert row["score"] == pytest.approx(expected(row["terms"], scales), abs=1e-4)


def moments_of(values: list[float]) -> dict[str, float]:
    mean = sum(values) / len(values)
    return {"count": len(values), "mean": mean, "squares": sum((v - mean) ** 2 for v in values)}


def test_the_log_has_mean_and_deviation_of_each_term_where_it_applies_and_its_share_of_the_score(finished: Run):
    row = next(row for row in finished.metrics() if row["step"] == 2 and "objective/score" in row)
    values = [r["terms"]["like"] for r in finished.samples if r["step"] == 2 and r["terms"]["like"] is not None]
    assert row["objective/term/like"] == pytest.approx(sum(values) / len(values), abs=1e-6)
    assert row["objective/term/like_std"] == pytest.approx(float(torch.tensor(values).std(correction=0)), abs=1e-6)
    shares = [row[f"objective/weighted/{name}"] for name in ("length", "like", "repetition")]
    assert sum(shares) == pytest.approx(row["objective/score"], abs=1e-5)


def test_a_resumed_run_ends_with_the_same_bits_and_the_same_log(finished: Run, tmp_path: Path):
    services = context(tmp_path / "ppo", seed=1)
    shutil.copytree(finished.context.folder / "checkpoints/step-000003", tmp_path / "ppo/checkpoints/step-000003")
    resumed = run(finished.base, finished.rows, services)
    assert resumed.metrics() == finished.metrics(after=3)
    assert all(torch.equal(a, b) for a, b in zip(resumed.weights().values(), finished.weights().values(), strict=True))
    assert scales_of(resumed) == scales_of(finished)


def scales_of(run: Run) -> dict[str, Any]:
    return json.loads((run.context.folder / "final" / "reward_scales.json").read_text())


def test_evaluations_use_the_moments_and_never_change_them(finished: Run):
    """Rollouts alone count: eight completions a step, half of which have something to be compared with."""
    best = scales_of(finished)
    steps = best["length"]["count"] // 8
    assert 1 <= steps <= CONFIG.steps
    assert best["like"]["count"] == 4 * steps


def test_the_final_evaluation_scores_in_the_units_of_the_published_policy(finished: Run, tmp_path: Path):
    services, final = context(tmp_path, seed=1), finished.context.folder / "final"
    settings = EvaluationConfig(prompts=8)
    model = ModelConfig(path=str(finished.base))
    table = run_evaluation(settings, CONFIG, model, finished.rows, TERMS, None, final, None, services)
    assert table["ppo"]["term/like"]["n"] == 4
    assert table["ppo"]["term/length"]["n"] == 8
    for row in services.tracker.rows:
        assert row["score"] == pytest.approx(expected(row["terms"], scales_of(finished)), abs=1e-4)


def scored() -> Scored:
    weighted = {"a": torch.tensor([0.1, 0.2]), "b": torch.tensor([1e4, -0.1])}
    return Scored(["x", "y"], sum(weighted.values()), {"a": torch.tensor([1.0, float("nan")])}, weighted)


def test_a_score_that_is_not_the_sum_of_its_terms_stops_the_run():
    require_sum(scored())
    wrong = replace(scored(), scores=scored().scores + torch.tensor([0.0, 1e-4]))
    with pytest.raises(
        RewardError, match=r"\[REW09\] completion 1 has the score 0.1001, and its terms add a 0.2, b -0.1"
    ):
        require_sum(wrong)


def test_a_term_that_applies_to_no_completion_has_no_mean():
    nowhere = replace(scored(), terms={"a": torch.full((2,), float("nan"))}, weighted={"a": torch.zeros(2)})
    assert term_metrics(nowhere) == {"objective/weighted/a": 0.0}


def test_the_best_policy_and_the_reference_are_compared_under_the_moments_of_now(tmp_path: Path):
    """A score of 3 that was kept when nothing was divided yet is 1.5 once the deviation is 2."""
    scale = RunningScale(centred=False)
    toy = small_tabular()
    toy.trainer.reward = RewardMixture([Term("a", 1.0, toy.trainer.reward.terms[0].source, scale)])
    evaluator = Evaluator(toy.trainer.reference, toy.trainer.reward, toy.trainer.sampler, decode, toy.trainer.trunk, 8)
    held_out = HeldOut(toy.trainer, None, evaluator, context(tmp_path), lambda folder: True)
    held_out.best = Best(1, 3.0, 0.0, {"a": [2.0, 4.0]})
    assert held_out._to_beat() == 3.0
    kept = Completions(None, {"a": torch.tensor([2.0, 4.0])}, torch.tensor([2.0, 4.0]), None, None, None)
    toy.trainer.reward.learn({"a": torch.tensor([0.0, 4.0])})
    assert held_out._to_beat() == 1.5
    assert evaluator.rescored(kept).scores.tolist() == [1.0, 2.0]


def test_the_trainer_uses_no_score_that_its_log_does_not_explain():
    class Generous(RewardMixture):
        def total(self, said: Any) -> torch.Tensor:
            return super().total(said) + 0.1

    toy = small_tabular()
    toy.trainer.reward = Generous(toy.trainer.reward.terms)
    with pytest.raises(RewardError, match=r"\[REW09\] completion 0 has the score"):
        toy.run(1)
