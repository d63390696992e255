"""The reward-model stage by its real entry point: what it learns, what its folder says, what it refuses."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from stages.base import InputError, StageResult
from stages.data import read_pairs
from stages.models.config import ModelConfig, TuningConfig
from stages.models.heads import ScoreModel
from stages.reward_model.quality import pair_accuracy
from stages.reward_model.statistics import RewardStatistics, raw_scores, verify_probes
from tests.reward_toys import DEMONSTRATIONS, FULL, LORA, PAIRS, Stage
from tests.toy_models import PAD, write_rows


@pytest.fixture(scope="module", params=[FULL, LORA], ids=["full", "lora"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Stage, StageResult]:
    stage = Stage(tmp_path_factory.mktemp("reward"))
    rate = 3e-3 if request.param == FULL else 1e-2
    return stage, stage.run(tuning=TuningConfig(**request.param), learning_rate=rate)


def test_separable_pairs_are_learnt_perfectly(trained: tuple[Stage, StageResult]):  # 35
    stage, result = trained
    assert result.headline["accuracy"] == 1.0
    assert (result.headline["n"], result.headline["pairs"], result.headline["steps"]) == (48, 48, 24)
    assert result.headline["accuracy_low"] == pytest.approx(0.9259, abs=5e-5)
    assert (
        result.headline["length_baseline"]
        == pair_accuracy([len(r["chosen"]) for r in PAIRS[::2]], [len(r["rejected"]) for r in PAIRS[::2]]).value
    )
    assert stage.tracker.series("reward_model/loss")[-1] < 0.1
    assert stage.tracker.series("reward_model/eval_accuracy") == [1.0]
    assert result.adapter == (result.final / "adapter_config.json").is_file()


def test_the_reloaded_model_is_centred_on_the_demonstrations(trained: tuple[Stage, StageResult]):  # 36
    stage, result = trained
    statistics = RewardStatistics.load(result.final)
    scorer = stage.scorer(result.final)
    centred = ScoreModel(scorer.classifier, statistics.mean, statistics.std)
    scores = torch.tensor(raw_scores(centred, stage.ids(DEMONSTRATIONS, "completion"), PAD, 5))
    assert abs(scores.mean()) < 1e-4
    assert abs(scores.std(correction=0) - 1) < 1e-4
    assert (statistics.mean, statistics.std) == (
        result.headline["demonstration_mean"],
        result.headline["demonstration_std"],
    )


def test_the_reloaded_model_has_the_accuracy_that_was_reported(trained: tuple[Stage, StageResult]):
    stage, result = trained
    rows = read_pairs(stage.held_out)
    chosen, rejected = (stage.scores(result.final, rows, column) for column in ("chosen", "rejected"))
    assert pair_accuracy(chosen, rejected).value == result.headline["accuracy"]
    mean = result.headline["demonstration_mean"]
    assert pair_accuracy([s - mean for s in chosen], [s - mean for s in rejected]).value == result.headline["accuracy"]


def test_a_score_does_not_depend_on_the_batch(trained: tuple[Stage, StageResult]):  # 35
    stage, result = trained
    alone, together = (torch.tensor(stage.scores(result.final, PAIRS, "chosen", size)) for size in (1, 7))
    assert (alone - together).abs().max() <= 1e-5


def test_the_probes_have_the_scores_they_had_when_saved(trained: tuple[Stage, StageResult]):
    stage, result = trained
    statistics = RewardStatistics.load(result.final)
    assert len(statistics.probe_ids) == len(statistics.probe_scores) == 8
    verify_probes(stage.scorer(result.final), statistics, result.final, PAD)
    found = raw_scores(stage.scorer(result.final), statistics.probe_ids, PAD, 8)
    assert found == pytest.approx(statistics.probe_scores, abs=1e-5)


def test_a_tampered_weight_is_refused(trained: tuple[Stage, StageResult]):
    stage, result = trained
    (file,) = result.final.glob("*model.safetensors")
    tensors = load_file(file)
    name = next(n for n in tensors if "v_proj" in n and "lora_A" not in n)
    try:
        save_file(tensors | {name: tensors[name] + 0.1}, file, metadata={"format": "pt"})
        with pytest.raises(InputError) as error:
            verify_probes(stage.scorer(result.final), RewardStatistics.load(result.final), result.final, PAD)
    finally:
        save_file(tensors, file, metadata={"format": "pt"})
    assert str(error.value).startswith(f"[RM05] {result.final}: a probe text scores ")
    assert str(error.value).endswith(
        "; fix: train the reward model again; its files were changed, or the base is another one"
    )


def test_a_folder_without_statistics_is_no_reward_model(tmp_path: Path):
    with pytest.raises(InputError) as error:
        RewardStatistics.load(tmp_path)
    assert str(error.value) == (
        f"[STAGE01] {tmp_path} has no reward_model.json: it is not the final/ of a reward_model stage; "
        "fix: give runs/<name>/reward_model/final"
    )


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("margin", [0.0, 1.5])
def test_the_loss_of_a_zero_head_is_log_two(
    architecture: str, margin: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # 35
    monkeypatch.setattr(nn.init, "normal_", lambda tensor, *args, **kwargs: nn.init.zeros_(tensor))
    stage = Stage(tmp_path, architecture)
    stage.train = write_rows(
        tmp_path / "margins.jsonl", [row | ({"margin": margin} if margin else {}) for row in PAIRS[:8]]
    )
    stage.run(held_out=False, max_steps=1)
    assert stage.tracker.series("reward_model/loss") == [pytest.approx(math.log1p(math.exp(margin)), abs=2e-4)]


def test_the_head_starts_from_the_seed_alone(tmp_path: Path):
    means = []
    for number in range(2):
        stage = Stage(tmp_path / str(number))
        torch.manual_seed(number)
        means.append(stage.run(max_steps=1, tuning=TuningConfig(**LORA)).headline["demonstration_mean"])
    assert means[0] == means[1]


def test_microbatches_change_nothing(tmp_path: Path):
    losses = []
    for size in (8, 2):
        stage = Stage(tmp_path / str(size))
        stage.run(max_steps=2, microbatch_size=size, held_out=False)
        losses.append([*stage.tracker.series("reward_model/loss"), *stage.tracker.series("reward_model/grad_norm")])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_without_demonstrations_the_chosen_texts_centre_the_scores(tmp_path: Path):
    stage = Stage(tmp_path)
    result = stage.run(demonstrations=[], max_steps=2)
    scores = stage.scores(result.final, read_pairs(stage.held_out), "chosen")
    assert sum(scores) / len(scores) == pytest.approx(result.headline["demonstration_mean"], abs=1e-5)


def test_pairs_that_are_all_too_long_are_refused(tmp_path: Path):
    stage = Stage(tmp_path)
    with pytest.raises(InputError) as error:
        stage.run(max_length=10)
    assert str(error.value) == (
        f"[DATA04] {stage.train}: no pair is within 10 tokens (the shortest has 20); fix: raise reward_model.max_length"
    )


def test_storage_in_bfloat16_without_its_arithmetic_is_refused():
    with pytest.raises(ValueError, match="dtype: bfloat16 needs compute: bfloat16 or float16"):
        ModelConfig(path="m", dtype="bfloat16")


@pytest.mark.parametrize("tuning", [FULL, LORA], ids=["full", "lora"])
def test_a_base_stored_in_bfloat16_gives_a_reward_model_that_loads(tuning: dict, tmp_path: Path):
    stage = Stage(tmp_path, dtype="bfloat16", compute="bfloat16")
    result = stage.run(max_steps=2, tuning=TuningConfig(**tuning))
    verify_probes(stage.scorer(result.final), RewardStatistics.load(result.final), result.final, PAD)
