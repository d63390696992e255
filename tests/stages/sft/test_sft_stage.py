"""Supervised fine-tuning by its real entry point: which tokens carry loss, what it writes, how it resumes."""

import itertools
import shutil
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from stages.base import Diverged, InputError, StageContext, StageResult
from stages.models.config import ModelConfig, TuningConfig
from stages.sft.config import SFTConfig
from stages.sft.stage import run_sft
from stages.stopping import Interrupted, StopRequest
from tests.toy_models import ARCHITECTURES, BOS, EOS, PAD, MemoryTracker, context, save_toy, toy_tokenizer, write_rows

LORA = {"method": "lora", "r": 4, "alpha": 8, "targets": "all-linear"}
STARTS, ENDS = (
    ("the film", "a plot", "my old seat", "this cast"),
    (" was a joy", " is so good!", " won", " made us all sad"),
)
ROWS = [{"prompt": p, "completion": c} for p, c in itertools.product(STARTS, ENDS)]
USER, ANSWER = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "so."}


class Stage:
    """A base model, demonstrations, and the stage on them."""

    def __init__(
        self,
        folder: Path,
        architecture: str = "llama",
        rows: list[dict] = ROWS[:12],
        held_out: list[dict] = ROWS[12:],
        **model: Any,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.base = save_toy(folder / "base", architecture)
        self.model = ModelConfig(path=str(self.base), **model)
        self.train = write_rows(folder / "train.jsonl", rows)
        self.held_out = write_rows(folder / "eval.jsonl", held_out)
        self.tracker = MemoryTracker()

    def run(self, seed: int = 0, services: StageContext | None = None, **changes: Any) -> StageResult:
        settings = {
            "learning_rate": 3e-3,
            "batch_size": 4,
            "microbatch_size": 4,
            "log_every": 1,
            "max_length": 64,
            "samples": 0,
        }
        services = services or replace(context(self.folder / "run", seed), tracker=self.tracker)
        return run_sft(SFTConfig(**settings | changes), self.model, self.train, self.held_out, services)


def token_losses(lm: nn.Module, prompt: str, completion: str, whole: bool = False) -> list[float]:
    """Cross-entropy of each completion token, EOS included; of the prompt's too, but its first, if `whole`."""
    characters = toy_tokenizer()
    prompt_ids = characters(prompt).input_ids
    ids = torch.tensor([[*prompt_ids, *characters(completion, add_special_tokens=False).input_ids, EOS]])
    with torch.no_grad():
        losses = nn.functional.cross_entropy(lm(ids).logits[0, :-1], ids[0, 1:], reduction="none")
    return losses.tolist() if whole else losses[len(prompt_ids) - 1 :].tolist()


def mean_loss(lm: nn.Module, rows: list[dict], whole: bool = False) -> float:
    """Mean over all target tokens of all rows."""
    losses = [loss for row in rows for loss in token_losses(lm, row["prompt"], row["completion"], whole)]
    return sum(losses) / len(losses)


def weights(final: Path) -> dict[str, torch.Tensor]:
    (file,) = final.glob("*model.safetensors")
    return load_file(file)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("completion_only", [True, False])
def test_the_loss_is_over_the_completion_and_its_eos(architecture: str, completion_only: bool, tmp_path: Path):  # 37
    stage = Stage(tmp_path, architecture)
    result = stage.run(max_steps=1, completion_only_loss=completion_only)
    base = AutoModelForCausalLM.from_pretrained(stage.base).eval()
    expected = mean_loss(base, ROWS[12:], whole=not completion_only)
    assert result.headline["eval_loss_before"] == pytest.approx(expected, abs=1e-5)


def test_a_text_alone_trains_on_every_token(tmp_path: Path):
    stage = Stage(tmp_path, held_out=[{"text": "a film of old"}, {"text": "it is so"}])
    result = stage.run(max_steps=1)
    base = AutoModelForCausalLM.from_pretrained(stage.base).eval()
    rows = [{"prompt": "", "completion": text} for text in ("a film of old", "it is so")]
    assert result.headline["eval_loss_before"] == pytest.approx(mean_loss(base, rows), abs=1e-5)


def test_messages_train_on_the_last_answer(tmp_path: Path):
    stage = Stage(tmp_path, held_out=[{"messages": [USER, ANSWER]}])
    result = stage.run(max_steps=1)
    base = AutoModelForCausalLM.from_pretrained(stage.base).eval()
    expected = mean_loss(base, [{"prompt": "u:why?\na:", "completion": "so."}])
    assert result.headline["eval_loss_before"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_rows_have_the_loss_and_gradient_of_unpacked_ones(architecture: str, tmp_path: Path):  # 37
    found = []
    for packing in (False, True):
        stage = Stage(tmp_path / str(packing), architecture, rows=ROWS[:5])
        size = 1 if packing else 5
        stage.run(max_steps=1, packing=packing, batch_size=size, microbatch_size=size, max_length=128)
        found.append((stage.tracker.series("sft/loss")[0], stage.tracker.series("sft/grad_norm")[0]))
    base = AutoModelForCausalLM.from_pretrained(stage.base).eval()
    assert found[0] == pytest.approx((mean_loss(base, ROWS[:5]), found[0][1]), abs=2e-4)
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=2e-4)


def test_an_epoch_of_packed_rows_is_one_pass_over_the_blocks(tmp_path: Path):
    rows = [{"prompt": "abcdef", "completion": "ghijklmn"}] * 24  # 16 tokens each with BOS and EOS: four to a block
    stage = Stage(tmp_path, rows=rows)
    result = stage.run(packing=True, max_length=64, batch_size=2, microbatch_size=2)
    assert result.headline["steps"] == 3
    assert stage.tracker.series("sft/tokens")[-1] == 24 * 16


@pytest.mark.parametrize("tuning", [{}, LORA], ids=["full", "lora"])
def test_microbatches_of_unequal_lengths_change_nothing(tuning: dict, tmp_path: Path):  # 27
    found = []
    for size in (4, 1):
        stage = Stage(tmp_path / str(size))
        stage.run(max_steps=2, microbatch_size=size, tuning=TuningConfig(**tuning))
        found.append(stage.tracker.series("sft/loss") + stage.tracker.series("sft/grad_norm"))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.parametrize("tuning", [{}, LORA], ids=["full", "lora"])
def test_recomputed_activations_change_nothing(tuning: dict, tmp_path: Path):
    found = []
    for checkpointing in (False, True):
        stage = Stage(tmp_path / str(checkpointing))
        stage.run(max_steps=2, gradient_checkpointing=checkpointing, tuning=TuningConfig(**tuning))
        found.append(stage.tracker.series("sft/loss") + stage.tracker.series("sft/grad_norm"))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert min(found[0]) > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tuning", [{}, LORA], ids=["full", "lora"])
def test_the_loss_falls_and_plain_transformers_computes_the_same(architecture: str, tuning: dict, tmp_path: Path):  # 43
    stage = Stage(tmp_path, architecture)
    result = stage.run(epochs=4, tuning=TuningConfig(**tuning), learning_rate=1e-2 if tuning else 3e-3)
    before, after = result.headline["eval_loss_before"], result.headline["eval_loss"]
    assert after < before - 0.3
    assert (result.headline["steps"], result.headline["rows"], result.adapter) == (12, 12, bool(tuning))
    assert stage.tracker.series("sft/eval_loss") == pytest.approx([before, after], abs=1e-3)

    plain = AutoModelForCausalLM.from_pretrained(stage.base if tuning else result.final)
    plain = PeftModel.from_pretrained(plain, result.final) if tuning else plain
    assert mean_loss(plain.eval(), ROWS[12:]) == pytest.approx(after, abs=1e-5)
    assert AutoTokenizer.from_pretrained(result.final)("a b").input_ids == toy_tokenizer()("a b").input_ids
    generation = GenerationConfig.from_pretrained(result.final)
    assert (generation.top_k, generation.eos_token_id, generation.pad_token_id, generation.bos_token_id) == (
        0,
        [EOS],
        PAD,
        BOS,
    )
    transformers_again = AutoTokenizer.from_pretrained(result.final)
    assert transformers_again.chat_template == toy_tokenizer().chat_template


@pytest.mark.parametrize("tuning", [{}, LORA], ids=["full", "lora"])
def test_the_same_seed_gives_the_same_weights(tuning: dict, tmp_path: Path):  # 39
    found = []
    for number, seed in enumerate((0, 0, 1)):
        stage = Stage(tmp_path / str(number))
        torch.manual_seed(number)  # what ran before in the process does not matter
        found.append(weights(stage.run(seed=seed, max_steps=4, tuning=TuningConfig(**tuning)).final))
    first, again, other = found
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    "settings",
    [{"log_every": 1, "max_steps": 6}, {"log_every": 10, "max_steps": 6}],
    ids=["logged", "between logged steps"],
)
def test_a_loss_that_is_no_number_stops_the_run(settings: dict, tmp_path: Path):
    stage = Stage(tmp_path)
    with pytest.raises(Diverged, match=r"^\[TRAIN01\] sft step \d+: .*; fix: lower sft.learning_rate$"):
        stage.run(learning_rate=1e30, **settings)
    assert not (tmp_path / "run" / "final").exists()


class Stopping(MemoryTracker):
    """Asks a stage to stop while its third step is logged."""

    def __init__(self, stop: StopRequest):
        super().__init__()
        self._stop = stop

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        super().log(metrics, step)
        if step == 3:
            self._stop.signal = signal.SIGTERM


def test_a_stage_that_is_asked_to_stop_saves_the_running_step_and_goes_on_to_the_same_bits(tmp_path: Path):
    whole, stage = Stage(tmp_path / "whole"), Stage(tmp_path / "stopped")
    expected = weights(whole.run(max_steps=5, checkpoint_every=0).final)
    services = context(stage.folder / "run")
    services = replace(services, tracker=Stopping(services.stop))
    with pytest.raises(Interrupted) as end:
        stage.run(services=services, max_steps=5, checkpoint_every=0)
    assert end.value.step == services.checkpoints.latest()[0] == 4  # the log of step 3 is written after its boundary
    found = weights(stage.run(max_steps=5, checkpoint_every=0).final)
    assert stage.tracker.series("sft/loss") == whole.tracker.series("sft/loss")[4:]
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_checkpoint_of_the_last_step_is_not_trained_further(tmp_path: Path):
    stage = Stage(tmp_path)
    final = stage.run(max_steps=2, checkpoint_every=2).final
    expected = weights(final)
    shutil.rmtree(final)
    result = stage.run(max_steps=2, checkpoint_every=2)
    assert result.headline["steps"] == 2
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(result.final).items())


def test_rows_without_a_target_are_refused_with_their_numbers(tmp_path: Path):
    stage = Stage(tmp_path)
    with pytest.raises(InputError) as error:
        stage.run(max_length=9)
    assert str(error.value) == (
        f"[DATA04] {stage.train}: 8 of 12 rows have no target token, their prompts have 9 tokens or more "
        "(median 10; rows 1, 2, 3, 4, 9, ...); fix: raise sft.max_length; the longest row has 29 tokens"
    )


def test_the_same_prompts_are_completed_before_and_after(tmp_path: Path):
    stage = Stage(tmp_path)
    stage.run(max_steps=2, samples=2, sample_tokens=5)
    rows = stage.tracker.rows
    assert [(r["when"], r["step"], r["prompt"], r["reference"]) for r in rows] == [
        (when, step, "this cast", end) for when, step in (("before", 0), ("after", 2)) for end in ENDS[:2]
    ]
    assert all(len(r["completion"]) <= 5 for r in rows)
