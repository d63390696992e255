"""Numbers that are not finite on one rank, and batches that ranks cannot share, under ZeRO 0, 2 and 3."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranked_stages import train
from tests.toy_models import save_toy

STAGES = (0, 2, 3)
CONFIG = {"max_steps": 4, "samples": 0}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("wrong")
    base = str(save_toy(folder / "base"))

    def case(name: str, zero: int, **rest: Any) -> dict[str, Any]:
        config = CONFIG | rest.pop("config", {})
        place = {"stage": "sft", "folder": str(folder / name), "base": base, "deepspeed": {"zero_stage": zero}}
        return place | {"config": config} | rest

    cases = [
        *(case(f"{zero}-stop", zero, spoil_step=2) for zero in STAGES),
        *(case(f"{zero}-skip", zero, spoil_step=2, config={"on_nonfinite": "rollback"}) for zero in STAGES),
        case("uneven", 0, config={"batch_size": 9}),
    ]
    results = train(2, cases, folder)
    found = {Path(c["folder"]).name: result for c, result in zip(cases, results, strict=True)}
    return found | {"folder": folder}


@pytest.mark.parametrize("zero", STAGES)
def test_a_bad_output_on_one_rank_ends_all_before_the_optimizer_has_it(zero: int, found: dict):
    ended = found[f"{zero}-stop"]["ended"]
    assert ended.startswith("Diverged: [TRAIN01] sft step 2: logprobs is not finite in rows [0, 1, 2, 3] of the batch")
    assert " of rank 1; " in ended
    assert (found["folder"] / f"{zero}-stop" / "diverged" / "step-000002-rank-1" / "batch.safetensors").is_file()


@pytest.mark.parametrize("zero", STAGES)
def test_a_skipped_batch_leaves_the_weights_finite_and_the_schedule_going(zero: int, found: dict):
    result = found[f"{zero}-skip"]
    assert (result["ended"], result["headline"]["steps"]) == (None, 4)
    losses = {row["step"]: row["sft/loss"] for row in result["log"] if "sft/loss" in row}
    assert losses.keys() >= {1, 3, 4}
    rates = [row["sft/learning_rate"] for row in result["log"] if "sft/learning_rate" in row]
    assert rates[-1] == pytest.approx(1e-2 / 4)
    assert [row["sft/skipped"] for row in result["log"] if "sft/skipped" in row][-1] == 1


def test_ranks_that_cannot_share_a_batch_say_which_sizes_they_can(found: dict):
    assert found["uneven"]["ended"] == (
        "InputError: [BATCH02] sft.batch_size 9 cannot be shared evenly by 2 ranks; fix: sft.batch_size=8 or 12"
    )
