"""The reward model over two ranks, as real processes: the same updates as on one, exact resumes, one set of scores."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from stages.models import bottleneck as bottleneck  # PEFT knows this method from here on
from tests.distributed.matrix import MATRIX, SAVED, STEPS, Ran, run_matrix
from tests.distributed.ranked_stages import METHODS

LOSS, NORM, MARGIN = "reward_model/loss", "reward_model/grad_norm", "reward_model/margin"
SAME, NORMS = {"rel": 2e-6, "abs": 0.0}, {"rel": 1e-5, "abs": 0.0}
"""float32 sums in another order, after three updates."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run_matrix("reward_model", tmp_path_factory.mktemp("reward_model") / "runs")


@pytest.mark.parametrize(("zero", "method"), MATRIX)
def test_two_ranks_make_the_updates_of_one(zero: int, method: str, ran: Ran):
    name, alone = f"{zero}-{method}", f"alone-{method}"
    assert len(ran.series(name, LOSS)) == STEPS
    for metric in (LOSS, "reward_model/learning_rate"):
        assert ran.series(name, metric) == pytest.approx(ran.series(alone, metric), **SAME), metric
    assert ran.series(name, NORM) == pytest.approx(ran.series(alone, NORM), **NORMS)


@pytest.mark.parametrize(("zero", "method"), MATRIX)
def test_a_resume_goes_on_to_the_same_bits(zero: int, method: str, ran: Ran):
    name = f"{zero}-{method}"
    assert "resuming from" in ran.found[f"{name}-resumed"]["printed"]
    assert ran.series(f"{name}-resumed", LOSS) == ran.series(name, LOSS)[SAVED:]
    assert ran.weights(f"{name}-resumed") == ran.weights(name)


@pytest.mark.parametrize(("zero", "method"), MATRIX)
def test_plain_transformers_and_peft_give_the_probes_the_scores_that_were_saved(zero: int, method: str, ran: Ran):
    final, base = ran.final(f"{zero}-{method}"), ran.folder / "base"
    source = base if METHODS[method] else final
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, pad_token_id=0)
    model = PeftModel.from_pretrained(model, final) if METHODS[method] else model
    saved = json.loads((final / "reward_model.json").read_text())
    with torch.no_grad():
        found = [float(model.eval()(torch.tensor([ids])).logits) for ids in saved["probe_ids"]]
    assert found == pytest.approx(saved["probe_scores"], abs=1e-4)
    assert len(set(found)) > 1


@pytest.mark.parametrize(("zero", "method"), MATRIX)
def test_what_is_said_of_the_model_is_what_one_rank_says(zero: int, method: str, ran: Ran):
    found, alone = ran.found[f"{zero}-{method}"]["headline"], ran.found[f"alone-{method}"]["headline"]
    assert found == pytest.approx(alone, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "alone"),
    [
        ("two-wide", "alone-full"),
        ("two-narrow", "alone-full"),
        ("alone-wide", "alone-full"),
        ("alone-zero", "alone-full"),
        ("two-grouped", "alone-grouped"),
    ],
)
def test_ranks_and_accumulation_change_nothing(name: str, alone: str, ran: Ran):
    assert ran.series(name, LOSS) == pytest.approx(ran.series(alone, LOSS), **SAME)
    assert ran.series(name, NORM) == pytest.approx(ran.series(alone, NORM), **NORMS)


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("shrunk", "2-full"),
        ("shrunk-prefix", "3-prefix_tuning"),
        ("shrunk-zero", "3-full"),
        ("grown", "alone-full"),
        ("grown-prefix", "alone-prefix_tuning"),
    ],
)
def test_another_number_of_ranks_goes_on_with_the_same_losses(name: str, whole: str, ran: Ran):
    assert ran.series(name, LOSS) == pytest.approx(ran.series(whole, LOSS)[SAVED:], **SAME)
    (line,) = [line for line in ran.found[name]["printed"].splitlines() if "goes on with" in line]
    assert line.startswith("reward_model: saved by ")


def test_a_metric_counts_the_pairs_of_all_ranks_once(ran: Ran):
    assert ran.series("two-narrow", MARGIN)[:2] == pytest.approx(ran.series("alone-wide", MARGIN)[:2], rel=1e-4)


def test_a_stop_that_one_rank_hears_saves_the_step(ran: Ran):
    assert ran.series("stopped", LOSS) == ran.series("2-full", LOSS)[SAVED + 1 :]
    assert ran.weights("stopped") == ran.weights("2-full")


def test_finals_are_written_by_one_rank_in_whole(ran: Ran):
    assert not list(Path(ran.folder).glob("*/.final*"))


def test_members_on_two_ranks_are_those_of_one_and_survive_a_stop(ran: Ran):
    for metric in (LOSS, "reward_model/member_2/loss"):
        assert ran.series("members-whole", metric) == pytest.approx(ran.series("alone-members", metric), **SAME)
    assert ran.series("members-whole", LOSS) != ran.series("members-whole", "reward_model/member_2/loss")
    assert "resuming from" in ran.found["members"]["printed"]
    assert ran.series("members", LOSS) == []
    for final in ("final", "final/members/2"):
        one, other = (ran.folder / name / final / "model.safetensors" for name in ("members", "members-whole"))
        assert one.read_bytes() == other.read_bytes()
