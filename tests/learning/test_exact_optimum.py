"""PPO finds the optimum that enumeration gives: designs of growing difficulty, judged without sampling error.

frac is the share of the possible gain in J = E[score] - beta KL, klopt = KL(pi || pi*) in nats per completion.
"""

import pytest

from tests.ppo_toys import GPT2, TABULAR, gpt2_trainer, structured, tabular_trainer, unstructured


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_a_tabular_policy_reaches_the_exact_optimum(seed: int) -> None:
    toy = tabular_trainer(seed)
    assert toy.exact().kl == 0.0 and toy.exact().klopt > 0.3
    steps = toy.run(TABULAR["steps"])
    result = toy.exact()
    assert steps[0].metrics["policy/ratio_first"] == 0.0
    assert result.frac >= 0.998 and result.klopt <= 0.005, result


@pytest.mark.parametrize("beta", [1.0, *(pytest.param(b, marks=pytest.mark.slow) for b in (0.1, 0.3, 3.0))])
def test_each_kl_coefficient_ends_on_the_exact_frontier(beta: float) -> None:
    toy = tabular_trainer(0, steps=100, kl_coef=beta)
    toy.run(100)
    result = toy.exact()
    assert result.kl == pytest.approx(result.best_kl, abs=0.03), result
    assert result.score == pytest.approx(result.best_score, abs=0.01), result


def test_a_transformer_reaches_the_optimum_of_one_token_completions() -> None:
    toy = gpt2_trainer(
        unstructured(16, 1, seed=0),
        16,
        seed=0,
        rollout_batch_size=256,
        minibatch_size=128,
        microbatch_size=128,
        max_new_tokens=1,
    )
    steps = toy.run(GPT2["steps"])
    result = toy.exact()
    assert steps[0].metrics["policy/ratio_first"] <= 1e-6
    assert result.frac >= 0.995 and result.klopt <= 0.01, result


def test_a_transformer_learns_scores_of_tokens_lengths_and_prompts() -> None:
    toy = gpt2_trainer(structured(6, 3, seed=0), 6, seed=0)
    toy.run(GPT2["steps"])
    result = toy.exact()
    assert result.frac >= 0.98 and result.klopt <= 0.02, result


@pytest.mark.slow
def test_a_transformer_comes_close_where_each_completion_has_a_score_of_its_own() -> None:
    toy = gpt2_trainer(
        unstructured(6, 3, seed=0),
        6,
        seed=0,
        steps=100,
        rollout_batch_size=1024,
        minibatch_size=512,
        microbatch_size=512,
        learning_rate=2e-3,
    )
    toy.run(100)
    assert toy.exact().frac >= 0.93
