"""Best-of-n in closed form, and the frontier's points from what runs leave."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from scripts.benchmark.frontier import (
    best_of_n,
    best_of_n_kl,
    best_of_n_weights,
    draw,
    points_of_best_of_n,
    points_of_ppo,
    table,
)

SCORES = np.array([[3.0, 1.0, 2.0], [0.0, 6.0, 3.0]])
VERDICTS = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])


def test_best_of_one_is_the_mean_and_best_of_all_is_the_maximum():
    one, every = best_of_n(SCORES, VERDICTS, 1), best_of_n(SCORES, VERDICTS, 3)
    assert one["score"] == pytest.approx(2.5)
    assert one["judge"] == pytest.approx(0.5)
    assert every["score"] == pytest.approx(4.5)
    assert every["judge"] == pytest.approx(0.5), "the judge's word on the samples that the reward chose"
    assert every["score_error"] == pytest.approx(1.5), "standard deviation 2.12 of 3 and 6, over two prompts"


def test_best_of_two_of_three_takes_the_highest_in_two_draws_of_three():
    assert best_of_n_weights(3, 2) == pytest.approx([0, 1 / 3, 2 / 3])
    assert best_of_n(SCORES, VERDICTS, 2)["score"] == pytest.approx((8 / 3 + 5) / 2)


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_the_weights_are_a_distribution(n):
    assert best_of_n_weights(16, n).sum() == pytest.approx(1)


def test_the_kl_of_best_of_n():
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(16) == pytest.approx(math.log(16) - 15 / 16)


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "standard_error": 0.1, "n": 9}


def test_points_come_from_the_runs_beside_and_are_drawn(tmp_path: Path):
    run = tmp_path / "demo"
    for name, kl in (("kl0.05", 9.0), ("kl1", 0.5)):
        folder = tmp_path / f"demo-{name}"
        folder.mkdir()
        values = {"kl": estimate(kl), "score": estimate(kl / 3), "judge": estimate(0.8)}
        (folder / "results.json").write_text(json.dumps({"models": {"ppo": values}}))
    rows = [{"score": s, "judge": v} for s, v in zip(SCORES.ravel(), VERDICTS.ravel(), strict=True)]
    (tmp_path / "demo-best-of-n.json").write_text(json.dumps({"samples": 3, "rows": rows}))
    curves = {"PPO": points_of_ppo(run), "best-of-n": points_of_best_of_n(run)}
    assert [point["kl_coef"] for point in curves["PPO"]] == [1, 0.05]
    assert [point["n"] for point in curves["best-of-n"]] == [1, 2]
    assert "| PPO, kl_coef 0.05 | 9.00 ± 0.10 | 3.000 ± 0.100 | 0.800 ± 0.100 |" in table(curves)
    draw(curves, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
