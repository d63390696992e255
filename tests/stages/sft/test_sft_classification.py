"""Classification by SFT's real entry point: what is reported, and that a task which can be learned is learned."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from stages.base import InputError, StageResult
from stages.models.config import ModelConfig, TuningConfig
from stages.models.heads import PolicyModel
from stages.render import Renderer
from stages.sft.classification import quality, total_logprobs
from stages.sft.config import ClassificationConfig, SFTConfig
from stages.sft.stage import run_sft
from tests.toy_models import EOS, PAD, MemoryTracker, context, save_toy, toy_tokenizer, write_rows

MOOD = ClassificationConfig(prompt="{text}:", labels={"0": "dull", "1": "glad"})
LORA = {"method": "lora", "r": 8, "alpha": 16, "targets": "all-linear"}
PROMPT = {"method": "prompt_tuning", "virtual_tokens": 8}


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Four letters, of which the last decides: z is glad, q is dull; both are equally frequent."""
    source = random.Random(seed)
    starts = ["".join(source.choices("abcde", k=3)) for _ in range(count)]
    return [{"text": start + "qz"[i % 2], "label": i % 2} for i, start in enumerate(starts)]


class Stage:
    """A base model, labelled rows, and the stage on them."""

    def __init__(self, folder: Path, train: list[dict] | None = None, held_out: list[dict] | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.tracker = folder, MemoryTracker()
        self.base = save_toy(folder / "base")
        self.train = write_rows(folder / "train.jsonl", train or rows(64, seed=0))
        self.held_out = write_rows(folder / "eval.jsonl", held_out or rows(40, seed=1))

    def run(self, eval: bool = True, **changes: Any) -> StageResult:
        settings = {
            "classification": MOOD,
            "learning_rate": 1e-2,
            "lr_schedule": "constant",
            "batch_size": 16,
            "microbatch_size": 16,
            "max_length": 64,
            "samples": 0,
        }
        services = replace(context(self.folder / "run"), tracker=self.tracker)
        model = ModelConfig(path=str(self.base))
        return run_sft(SFTConfig(**settings | changes), model, self.train, self.held_out if eval else None, services)


def test_accuracy_macro_f1_and_baseline_of_hand_made_predictions():
    # a: precision 2/3, recall 2/4, F1 4/7; b: 1/2, 1/1, 2/3; c is never found, F1 0; d is neither there nor found.
    found = quality(["a", "a", "a", "a", "b", "c"], ["a", "a", "b", "d", "b", "a"], ["a", "b", "c", "d"])
    assert found == {
        "accuracy": pytest.approx(0.5),
        "accuracy_low": pytest.approx(0.187616, abs=1e-6),
        "accuracy_high": pytest.approx(0.812384, abs=1e-6),
        "macro_f1": pytest.approx((4 / 7 + 2 / 3 + 0 + 0) / 4),
        "majority_baseline": pytest.approx(4 / 6),
        "n": 6,
    }


def test_always_the_commonest_label_has_its_share_as_accuracy_and_half_of_an_f1():
    found = quality(["a", "a", "a", "b"], ["a"] * 4, ["a", "b"])
    assert (found["accuracy"], found["majority_baseline"]) == (0.75, 0.75)
    assert found["macro_f1"] == pytest.approx((6 / 7 + 0) / 2)


def test_a_completion_is_as_likely_as_its_tokens_and_its_end_together(tmp_path: Path):
    lm = AutoModelForCausalLM.from_pretrained(save_toy(tmp_path / "base")).eval()
    renderer = Renderer(toy_tokenizer())
    texts = [("ab:", " glad"), ("a longer one:", " dull"), ("ab:", " s")]
    found = total_logprobs(PolicyModel(lm), [renderer.pair(*pair) for pair in texts], PAD, batch_size=2)
    for (prompt, completion), total in zip(texts, found, strict=True):
        start = toy_tokenizer()(prompt).input_ids
        ids = torch.tensor([[*start, *toy_tokenizer()(completion, add_special_tokens=False).input_ids, EOS]])
        with torch.no_grad():
            logprobs = lm(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        assert total == pytest.approx(float(logprobs[len(start) - 1 :].sum()), abs=1e-4)


@pytest.mark.parametrize(
    ("tuning", "rate", "steps"),
    [({}, 3e-3, 60), (LORA, 1e-2, 60), (PROMPT, 0.1, 300)],
    ids=["full", "lora", "prompt_tuning"],
)
def test_a_separable_task_is_learned_from_chance_to_perfection(
    tuning: dict, rate: float, steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stage = Stage(tmp_path)
    result = stage.run(tuning=TuningConfig(**tuning), learning_rate=rate, max_steps=steps)
    headline = result.headline
    assert 0.25 <= headline["accuracy_before"] <= 0.75
    assert (headline["accuracy"], headline["macro_f1"], headline["accuracy_high"]) == (1.0, 1.0, 1.0)
    assert headline["accuracy_low"] == pytest.approx(0.912378, abs=1e-6)  # 40 of 40: n / (n + z^2)
    assert (headline["majority_baseline"], headline["n"]) == (0.5, 40)
    logged = [(row["step"], row["sft/eval_accuracy"]) for row in stage.tracker.metrics if "sft/eval_accuracy" in row]
    assert logged == [(0, headline["accuracy_before"]), (steps, 1.0)]
    assert stage.tracker.series("sft/eval_macro_f1")[-1] == 1.0
    assert (
        "sft: held-out accuracy after training 1.000 [0.912, 1.000], macro-F1 1.000 on 40 rows; always 'dull' 0.500"
        in capsys.readouterr().out
    )


def test_the_accuracy_before_training_is_that_of_the_base_model(tmp_path: Path):
    held_out = rows(12, seed=2)
    result = Stage(tmp_path, held_out=held_out).run(max_steps=1)
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    renderer, correct = Renderer(toy_tokenizer()), 0
    for row in held_out:
        pairs = [renderer.pair(row["text"] + ":", word) for word in (" dull", " glad")]
        dull, glad = total_logprobs(PolicyModel(lm), pairs, PAD, batch_size=2)
        correct += (glad > dull) == (row["label"] == 1)
    assert result.headline["accuracy_before"] == pytest.approx(correct / 12)


def test_labelled_rows_train_as_the_prompts_and_completions_they_stand_for(tmp_path: Path):
    settings = {"tuning": TuningConfig(**LORA, dropout=0.2), "max_steps": 4, "log_every": 1}
    labelled = Stage(tmp_path / "labelled")
    labelled.run(**settings)
    by_hand = [
        [{"prompt": row["text"] + ":", "completion": (" dull", " glad")[row["label"]]} for row in part]
        for part in (rows(64, seed=0), rows(40, seed=1))
    ]
    written = Stage(tmp_path / "written", *by_hand)
    result = written.run(classification=None, **settings)
    for name in ("sft/loss", "sft/eval_loss"):
        assert labelled.tracker.series(name) == written.tracker.series(name)
    assert not {"accuracy", "accuracy_before", "macro_f1"} & result.headline.keys()


def test_without_held_out_rows_no_accuracy_is_reported(tmp_path: Path):
    stage = Stage(tmp_path)
    result = stage.run(eval=False, max_steps=1, samples=2)
    assert not {"accuracy", "accuracy_before", "macro_f1", "n"} & result.headline.keys()
    assert stage.tracker.series("sft/eval_accuracy") == stage.tracker.rows == []


def test_the_first_predictions_are_kept_before_and_after(tmp_path: Path):
    stage = Stage(tmp_path)
    stage.run(max_steps=60, samples=2, learning_rate=3e-3)
    found = [(r["when"], r["step"], r["prompt"][3:], r["reference"]) for r in stage.tracker.rows]
    assert found == [
        ("before", 0, "q:", " dull"),
        ("before", 0, "z:", " glad"),
        ("after", 60, "q:", " dull"),
        ("after", 60, "z:", " glad"),
    ]
    assert {row["completion"] for row in stage.tracker.rows} <= {" dull", " glad"}
    assert [row["completion"] for row in stage.tracker.rows[2:]] == [" dull", " glad"]


def test_rows_too_long_for_a_label_are_left_out_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    held_out = [*rows(39, seed=1), {"text": "a" * 21, "label": 1}]
    stage = Stage(tmp_path, held_out=held_out)
    result = stage.run(max_steps=1, max_length=28)  # BOS, 21 letters, a colon, a space, four letters, EOS: 29
    assert result.headline["n"] == 39
    told = f"{stage.held_out}: 1 of 40 rows exceed 28 tokens with a label; accuracy leaves them out\n"
    assert told in capsys.readouterr().out


def test_no_row_that_fits_is_refused(tmp_path: Path):
    stage = Stage(tmp_path, held_out=[{"text": "a" * 21, "label": 1}])
    with pytest.raises(InputError) as error:
        stage.run(max_length=28)
    assert str(error.value) == (
        f"[DATA04] {stage.held_out}: 1 of 1 rows exceed 28 tokens with a label; fix: raise sft.max_length"
    )


def test_a_label_that_no_training_row_has_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    stage = Stage(tmp_path, train=[row for row in rows(64, seed=0) if row["label"] == 1])
    stage.run(max_steps=1)
    assert f"{stage.train}: no row has the label '0', so it will not be learned\n" in capsys.readouterr().out
