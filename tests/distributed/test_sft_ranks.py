"""SFT over two ranks, as real processes: the same updates as on one, whatever is split, and exact resumes."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from stages.models import bottleneck as bottleneck  # PEFT knows this method from here on
from tests.distributed.matrix import MATRIX, SAVED, STEPS, Ran, run_matrix
from tests.distributed.ranked_stages import DEMONSTRATIONS, METHODS
from tests.toy_models import EOS, toy_tokenizer

LOSS, NORM = "sft/loss", "sft/grad_norm"
SAME, NORMS = {"rel": 1e-6, "abs": 0.0}, {"rel": 1e-5, "abs": 0.0}
"""float32 sums in another order: a loss is off by 3e-7 of itself at most, a gradient after three updates by 4e-6."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run_matrix("sft", tmp_path_factory.mktemp("sft") / "runs")


@pytest.mark.parametrize(("zero", "method"), MATRIX)
def test_two_ranks_make_the_updates_of_one(zero: int, method: str, ran: Ran):
    name, alone = f"{zero}-{method}", f"alone-{method}"
    assert len(ran.series(name, LOSS)) == STEPS
    for metric in (LOSS, "sft/eval_loss", "sft/learning_rate"):
        assert ran.series(name, metric) == pytest.approx(ran.series(alone, metric), **SAME), metric
    assert ran.series(name, NORM) == pytest.approx(ran.series(alone, NORM), **NORMS)


@pytest.mark.parametrize(("zero", "method"), MATRIX)
def test_a_resume_goes_on_to_the_same_bits(zero: int, method: str, ran: Ran):
    name = f"{zero}-{method}"
    assert "resuming from" in ran.found[f"{name}-resumed"]["printed"]
    assert ran.series(f"{name}-resumed", LOSS) == ran.series(name, LOSS)[SAVED:]
    assert ran.weights(f"{name}-resumed") == ran.weights(name)


@pytest.mark.parametrize(("zero", "method"), MATRIX)
def test_plain_transformers_and_peft_compute_the_loss_that_was_reported(zero: int, method: str, ran: Ran):
    final, base = ran.final(f"{zero}-{method}"), ran.folder / "base"
    lm = AutoModelForCausalLM.from_pretrained(base if METHODS[method] else final)
    lm = PeftModel.from_pretrained(lm, final) if METHODS[method] else lm
    reported = ran.found[f"{zero}-{method}"]["headline"]["eval_loss"]
    assert _batched_loss(lm.eval(), DEMONSTRATIONS[-5:], size=2) == pytest.approx(reported, abs=1e-4)


@torch.no_grad()
def _batched_loss(lm: torch.nn.Module, rows: list[dict], size: int) -> float:
    """Mean over the rows of the losses of their batches, as transformers' Trainer evaluates."""
    tokenizer, total = toy_tokenizer(), 0.0
    for start in range(0, len(rows), size):
        batch, losses = rows[start : start + size], []
        for row in batch:
            prompt = tokenizer(row["prompt"]).input_ids
            ids = [*prompt, *tokenizer(row["completion"], add_special_tokens=False).input_ids, EOS]
            logits = lm(torch.tensor([ids])).logits[0, -len(ids) :]
            logprobs = logits[:-1].log_softmax(-1).gather(1, torch.tensor(ids)[1:, None])
            losses += (-logprobs[len(prompt) - 1 :, 0]).tolist()
        total += len(batch) * sum(losses) / len(losses)
    return total / len(rows)


@pytest.mark.parametrize(
    ("name", "alone"),
    [
        ("two-wide", "alone-full"),
        ("two-narrow", "alone-full"),
        ("alone-wide", "alone-full"),
        ("alone-zero", "alone-full"),
        ("two-grouped", "alone-grouped"),
        ("two-checkpointing", "alone-lora"),
        ("two-offloaded", "alone-full"),
    ],
)
def test_ranks_and_accumulation_change_nothing(name: str, alone: str, ran: Ran):
    assert ran.series(name, LOSS) == pytest.approx(ran.series(alone, LOSS), **SAME)
    assert ran.series(name, NORM) == pytest.approx(ran.series(alone, NORM), **NORMS)


def test_an_offloaded_optimizer_resumes_to_the_same_bits(ran: Ran):
    assert ran.series("two-offloaded-resumed", LOSS) == ran.series("two-offloaded", LOSS)[SAVED:]
    assert ran.weights("two-offloaded-resumed") == ran.weights("two-offloaded")


def test_bfloat16_is_autocast_under_deepspeed_too(ran: Ran):
    found, alone, full = (ran.series(name, LOSS)[:2] for name in ("two-autocast", "alone-autocast", "alone-full"))
    assert found == pytest.approx(alone, rel=1e-5)
    assert found != pytest.approx(full, rel=1e-4)


def test_float16_scales_the_loss_until_no_gradient_overflows(ran: Ran):
    first = ran.series("alone-lora", LOSS)[:2]
    for name in ("alone-half", "two-half-0", "two-half-2", "two-half-3"):
        scales = ran.series(name, "sft/loss_scale")
        left_out = [scale for scale, before in zip(scales, [65536.0, *scales], strict=False) if scale < before]
        assert scales == sorted(scales, reverse=True)
        assert len(ran.series(name, NORM)) == STEPS - len(left_out)
        assert ran.series(name, LOSS)[:2] == pytest.approx(first, rel=2e-3)
        assert ran.series(name, LOSS)[:2] != pytest.approx(first, rel=1e-6)
    same = [ran.series(f"two-half-{zero}", LOSS) for zero in (0, 2, 3)]
    assert same[1] == pytest.approx(same[0], rel=1e-3)
    assert same[2] == pytest.approx(same[0], rel=1e-3)


def test_float16_resumes_to_the_same_bits_with_its_loss_scale(ran: Ran):
    for metric in (LOSS, "sft/loss_scale"):
        assert ran.series("two-half-resumed", metric) == ran.series("two-half-2", metric)[SAVED:]
    assert ran.weights("two-half-resumed") == ran.weights("two-half-2")
    assert ran.series("half-grown", LOSS)[0] == pytest.approx(ran.series("alone-half", LOSS)[SAVED], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "whole", "told"),
    [
        ("shrunk", "2-full", "sft: saved by 2 ranks, goes on with 1: "),
        ("shrunk-prefix", "3-prefix_tuning", "sft: saved by 2 ranks, goes on with 1: "),
        ("shrunk-zero", "3-full", "sft: saved by 2 ranks, goes on with 1: "),
        ("grown", "alone-full", "sft: saved by 1 rank, goes on with 2: "),
        ("grown-prefix", "alone-prefix_tuning", "sft: saved by 1 rank, goes on with 2: "),
    ],
)
def test_another_number_of_ranks_goes_on_with_the_same_losses_and_says_so(name: str, whole: str, told: str, ran: Ran):
    for metric in (LOSS, "sft/learning_rate"):
        assert ran.series(name, metric) == pytest.approx(ran.series(whole, metric)[SAVED:], **SAME)
    (line,) = [line for line in ran.found[name]["printed"].splitlines() if "goes on with" in line]
    assert line.startswith(told)


def test_a_checkpoint_of_one_zero_stage_is_gone_on_from_under_another(ran: Ran):
    assert ran.series("other-stage", LOSS) == pytest.approx(ran.series("0-lora", LOSS)[SAVED:], **SAME)
    assert "goes on with" not in ran.found["other-stage"]["printed"]


def test_a_stop_that_one_rank_hears_saves_the_step_and_leaves_nothing_else(ran: Ran):
    assert ran.found["stopped"]["ended"] is None  # the second attempt, from the checkpoint of the stop
    assert ran.series("stopped", LOSS) == ran.series("2-full", LOSS)[SAVED + 1 :]  # heard while step 2 was logged
    assert ran.weights("stopped") == ran.weights("2-full")
    assert not (ran.folder / "stopped" / ".trainer").exists()


def test_a_checkpoint_holds_one_state_and_every_ranks_generators(ran: Ran):
    folder = ran.folder / "2-full" / "checkpoints" / f"step-{STEPS:06d}"
    names = {path.name for path in folder.iterdir()}
    assert {"trained.safetensors", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"} <= names
    assert not any("global_step" in name or name.endswith("optimizer.pt") for name in names)


def test_rank_zero_alone_logs_and_prints(ran: Ran):
    assert [row["step"] for row in ran.found["2-full"]["log"] if LOSS in row] == list(range(1, STEPS + 1))
    assert ran.found["2-full"]["headline"]["steps"] == STEPS


def test_finals_are_written_by_one_rank_in_whole(ran: Ran):
    assert not list(Path(ran.folder).glob("*/.final*"))
