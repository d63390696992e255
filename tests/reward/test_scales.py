"""Running scales: what they learn from, and what they do to scores."""

import json

import pytest
import torch

from reward.mixture import FunctionScores, RewardMixture, Term, Texts
from reward.scales import RunningMoments, RunningScale

NAN = float("nan")


def said(*values: float) -> dict[str, torch.Tensor]:
    return {"f": torch.tensor(values)}


def mixture(centred: bool = False, clip: float | None = None) -> RewardMixture:
    def echo(completions, **columns):
        return [None if c == "" else float(c) for c in completions]

    return RewardMixture([Term("f", 3.0, FunctionScores("f", echo, {}), RunningScale(centred, clip))])


def test_a_running_scale_divides_by_the_deviation_of_all_scores_it_has_learnt_from():
    reward = mixture()
    reward.learn(said(1.0, 3.0))  # deviation 1
    assert reward.total(said(2.0)).tolist() == [6.0]
    reward.learn(said(5.0, 7.0))  # of 1, 3, 5, 7
    assert reward.total(said(2.0)).tolist() == pytest.approx([3 * 2 / 5**0.5])


def test_a_centred_one_takes_the_mean_off_before_and_clips_after():
    reward = mixture(centred=True, clip=1.5)
    reward.learn(said(0.0, 2.0, 0.0, 2.0))
    assert reward.total(said(1.0, 2.0, 9.0)).tolist() == [0.0, 3.0, 4.5]


def test_scores_that_do_not_apply_add_nothing_and_teach_nothing():
    reward = mixture(centred=True)
    reward.learn(said(1.0, NAN, 3.0, NAN))
    assert reward.state_dict() == {"f": {"count": 2, "mean": 2.0, "squares": 2.0}}
    assert reward.total(said(NAN, 3.0)).tolist() == [0.0, 3.0]


def test_asking_for_scores_teaches_nothing():
    reward = mixture()
    scores, _ = reward(Texts(["p"] * 3, ["2", "", "4"], {}), None)
    assert scores.tolist() == [6.0, 0.0, 12.0]
    assert reward.state_dict()["f"]["count"] == 0


def test_the_state_survives_json_to_the_bit():
    reward, again = mixture(), mixture()
    reward.learn({"f": torch.rand(100, generator=torch.Generator().manual_seed(0))})
    again.load_state_dict(json.loads(json.dumps(reward.state_dict())))
    assert torch.equal(again.total(said(0.3, 0.7)), reward.total(said(0.3, 0.7)))


def test_rounding_of_a_constant_is_no_deviation():
    moments = RunningMoments()
    for _ in range(3):
        moments.update(torch.full((7,), 0.1) + torch.tensor([0.0, 1e-9, 0.0, 0.0, 2e-9, 0.0, 0.0], dtype=torch.float64))
    assert moments.squares > 0
    assert moments.std == 1.0
