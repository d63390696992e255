"""Several reward models as one source: closed forms of what they combine to, and what is kept beside it."""

import pytest
import torch

from reward.config import RewardTerm
from reward.learned import EnsembleScores, ModelScores, combined
from reward.mixture import RewardMixture, Term, Texts
from reward.scales import Scale
from stages.ppo.scoring import Scored, require_sum, term_metrics

EACH = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, -2.0]])
STD = [(8 / 3) ** 0.5, (32 / 3) ** 0.5]
TEXTS = Texts(["p", "p"], ["a", "b"], {})


def ensemble(combine: str, k: float = 1.0) -> EnsembleScores:
    return EnsembleScores(tuple(ModelScores(i) for i in range(3)), combine, k)


def read(model: int) -> torch.Tensor:
    return EACH[model]


@pytest.mark.parametrize(
    ("combine", "k", "expected"),
    [
        ("mean", 1.0, [3.0, 2.0]),
        ("min", 1.0, [1.0, -2.0]),
        ("mean_minus_std", 1.0, [1.367007, -1.265986]),
        ("mean_minus_std", 0.5, [2.183503, 0.367007]),
        ("mean_minus_std", 0.0, [3.0, 2.0]),
    ],
)
def test_members_combine_to_these_numbers(combine: str, k: float, expected: list[float]):
    assert ensemble(combine, k)(TEXTS, read).tolist() == pytest.approx(expected, abs=1e-6)


def test_one_member_is_itself_whatever_combines_it():
    for combine in ("mean", "min", "mean_minus_std"):
        assert combined(EACH[:1], combine, 2.0).equal(EACH[0])


@pytest.mark.parametrize("combine", ["mean", "min", "mean_minus_std"])
def test_a_score_that_is_not_finite_is_not_hidden(combine: str):
    assert combined(torch.tensor([[1.0], [float("nan")]]), combine).isnan().all()


def test_the_disagreement_is_logged_and_adds_nothing_to_the_score():
    mixture = RewardMixture([Term("judges", 2.0, ensemble("min"), Scale(clip=1.5))])
    scores, said = mixture(TEXTS, read)
    assert scores.tolist() == [2.0, -3.0]
    assert said["judges"].tolist() == [1.0, -2.0]
    assert said["judges_disagreement"].tolist() == pytest.approx(STD)
    scored = Scored(["a", "b"], scores, said, mixture.weighted(said))
    require_sum(scored)
    assert term_metrics(scored)["objective/term/judges_disagreement"] == pytest.approx(sum(STD) / 2)
    assert "objective/weighted/judges_disagreement" not in term_metrics(scored)


def test_a_term_names_one_reward_model_or_several():
    assert RewardTerm(model="reward_model").models == ["reward_model"]
    assert RewardTerm(model=["a", "b"], combine="mean_minus_std", k=2.0).models == ["a", "b"]
    assert RewardTerm(metric="length", arguments={"target": 9}).models == []


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"model": []}, "'model' names no reward model"),
        ({"model": "a", "k": 2.0}, "'k' acts with combine: mean_minus_std alone"),
        ({"function": "a:b", "combine": "min"}, "'combine' belongs to a term with model, and this one has function"),
        ({"model": "a", "combine": "median"}, "Input should be 'mean', 'min' or 'mean_minus_std'"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys: dict, problem: str):
    with pytest.raises(ValueError, match=problem):
        RewardTerm(**keys)
