"""report.json as the stage writes it: what is measured on the saved model, with the rows of the file."""

import json
import math
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import equal

from stages.data import read_pairs
from stages.models.config import TuningConfig
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.evaluation import evaluate_reward_model
from stages.reward_model.reporting import shortened
from tests.reward_toys import BAD, DEMONSTRATIONS, GOOD, LORA, PAIRS, STARTS, Stage
from tests.toy_models import save_toy, write_rows


def test_the_report_says_what_the_saved_model_says(tmp_path: Path):
    stage = Stage(tmp_path)
    result = stage.run(epochs=1)
    report, mean, rows = stage.report(), result.headline["demonstration_mean"], read_pairs(stage.held_out)
    chosen, rejected = (stage.scores(result.final, rows, side) for side in ("chosen", "rejected"))
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    assert report["pairs"] == str(stage.held_out)
    assert {f"accuracy_{end}": report["accuracy"][end] for end in ("low", "high")} | {
        "accuracy": report["accuracy"]["value"],
        "n": report["accuracy"]["n"],
        "length_baseline": report["length_baseline"]["value"],
    } == {name: value for name, value in result.headline.items() if name[:4] in ("accu", "n", "leng")}
    scores = report["scores"]
    assert scores["chosen"]["mean"] == pytest.approx(sum(chosen) / len(chosen) - mean, abs=1e-5)
    assert scores["demonstrations"]["mean"] == pytest.approx(0, abs=1e-4)
    assert [(kind, found["n"]) for kind, found in scores.items()] == [
        ("chosen", 48),
        ("rejected", 48),
        ("demonstrations", 12),
    ]
    log_loss = sum(math.log1p(math.exp(-m)) for m in margins) / len(margins)
    assert report["calibration"]["log_loss"] == pytest.approx(log_loss, abs=1e-5)
    assert list(report["groups"]) == ["score_margin", "length_difference"]
    assert all(sum(group["n"] for group in groups) == 48 for groups in report["groups"].values())
    lengths = [len(row["chosen"]) + 1 for row in rows]  # one token per character, and the stop token
    assert [tokens for tokens, _ in scores["chosen"]["points"]] == lengths


def test_turned_labels_come_back_with_their_rows_and_sources(tmp_path: Path):
    stage = Stage(tmp_path)
    rows = [row | {"source": row["prompt"].split()[1], "margin": number % 2} for number, row in enumerate(PAIRS[::2])]
    for number in (3, 17):
        rows[number] |= {"chosen": rows[number]["rejected"], "rejected": rows[number]["chosen"]}
    rows.insert(5, rows[5] | {"chosen": " the same", "rejected": " the same"})  # left out, but a row of the file
    stage.held_out = write_rows(tmp_path / "turned.jsonl", rows)
    stage.run()
    report = stage.report()
    noise = report["label_noise"]
    assert sorted(row["row"] for row in noise["rows"]) == [4, 19]
    assert (noise["disputed"], report["left_out"], report["accuracy"]["n"]) == (2, 0, 48)
    for row in noise["rows"]:
        of_file = rows[row["row"] - 1]
        assert all(row[name] == of_file[name] for name in ("prompt", "chosen", "rejected", "source"))
        assert row["margin"] < 0
        assert row["reversed_probability"] == pytest.approx(1 / (1 + math.exp(row["margin"])))
    assert {group["name"] for group in report["groups"]["source"]} == {start.split()[1] for start in STARTS}
    assert [group["name"] for group in report["groups"]["data_margin"]] == ["0", "1"]


@pytest.mark.parametrize("tuning", [{"method": "full"}, LORA], ids=["full", "lora"])
def test_the_sft_model_is_sampled_on_the_held_out_prompts_and_training_is_the_same(tuning: dict, tmp_path: Path):
    report, weights = {}, {}
    for held_out in (True, False):
        stage = Stage(tmp_path / str(held_out))
        final = stage.run(max_steps=3, sft=save_toy(tmp_path / "sft"), held_out=held_out, tuning=TuningConfig(**tuning))
        (file,) = final.final.glob("*model.safetensors")
        weights[held_out] = load_file(file)
        report[held_out] = stage.report() if held_out else (stage.folder / "run" / "report.json").exists()
    assert all(equal(weights[True][name], tensor) for name, tensor in weights[False].items())
    assert report[False] is False, "without held-out pairs there is nothing to report"
    samples, drawing = report[True]["scores"]["sft_samples"], report[True]["sft_sampling"]
    assert samples["n"] == len(STARTS)
    assert drawing["max_new_tokens"] == max(len(text) for text in (*GOOD, *BAD)) + 1
    assert 0 <= drawing["unfinished"] <= len(STARTS)
    assert all(1 <= tokens <= drawing["max_new_tokens"] for tokens, _ in samples["points"])


def test_two_reward_models_are_measured_again_to_the_numbers_of_their_stage(tmp_path: Path):
    stage = Stage(tmp_path)
    sft = save_toy(tmp_path / "sft")
    settings = {"learning_rate": 1e-2, "batch_size": 8, "microbatch_size": 8, "max_length": 64, "max_steps": 2}
    config = RewardModelConfig(members=2, tuning=TuningConfig(**LORA), **settings)
    final = stage.run(sft=sft, members=2, tuning=config.tuning, **settings).final
    again = evaluate_reward_model(config, stage.model, final, stage.held_out, sft, DEMONSTRATIONS, seed=0)
    assert json.loads(json.dumps(again)) == stage.report()
    first = evaluate_reward_model(config, stage.model, without_members(final), stage.held_out, sft, DEMONSTRATIONS, 0)
    assert first["calibration"]["log_loss"] != again["calibration"]["log_loss"], "both members are in the mean"


def without_members(final: Path) -> Path:
    return Path(shutil.copytree(final, final.parent / "first", ignore=shutil.ignore_patterns("members")))


def test_of_long_texts_the_start_is_shown_and_of_long_prompts_the_end():
    assert shortened("a" * 400) == "a" * 400
    assert shortened("b" + "a" * 400) == "b" + "a" * 398 + "…"
    assert shortened("a" * 400 + "b", from_end=True) == "…" + "a" * 398 + "b"
