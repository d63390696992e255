"""What the monitor makes of a series of numbers: when an alarm begins, that it is told once, when it is over."""

import json
from pathlib import Path

import pytest

from stages.ppo.config import PPOConfig
from stages.ppo.health_config import HealthConfig
from stages.ppo.health_monitor import Monitor
from stages.ppo.health_rules import JUDGE_FALL, RULES, Judged


def monitor(kl_budget: float | None = None, **rules: dict) -> Monitor:
    return Monitor(HealthConfig.model_validate(rules), kl_budget, updates=8)


def changes(made: Monitor, metric: str, values: list[float], **more: float) -> list[tuple[int, str]]:
    """(step, what became of an alarm) for a series of one metric."""
    series = enumerate(values, 1)
    return [(n, a.change) for n, value in series for a in made.judge({metric: value, **more}, n, n - 1)]


def test_every_rule_of_the_config_has_its_line_and_no_other():
    assert [rule.name for rule in RULES] == list(HealthConfig().rules)


def test_one_noisy_step_is_no_alarm():
    noisy = [0.0, 0.9, 0.9, 0.0, 0.9, 0.0]
    assert changes(monitor(clip_fraction={"patience": 3}), "policy/clip_fraction", noisy) == []


def test_an_alarm_begins_after_its_patience_and_is_over_after_as_many_good_readings():
    found = changes(monitor(clip_fraction={"patience": 2}), "policy/clip_fraction", [0.9, 0.9, 0.9, 0.1, 0.9, 0.1, 0.1])
    assert found == [(2, "begins"), (3, "lasts"), (4, "lasts"), (5, "lasts"), (6, "lasts"), (7, "over")]


def test_flags_and_records_say_when_an_alarm_was_on():
    made = monitor(clip_fraction={"patience": 2})
    assert made.flags()["health/alarms"] == 0.0
    changes(made, "policy/clip_fraction", [0.9, 0.9])
    assert made.flags()["health/clip_fraction"] == made.flags()["health/alarms"] == 1.0
    changes(made, "policy/clip_fraction", [0.1, 0.1])
    (record,) = made.records
    assert (record["rule"], record["step"], record["over"], record["action"]) == ("clip_fraction", 2, 2, "warn")
    assert record["reading"] == "policy/clip_fraction is 0.9, above 0.3"
    assert made.counts() == {"clip_fraction": 1}


def test_an_alarm_names_step_value_threshold_cause_and_knob():
    (alarm,) = monitor(approx_kl={"patience": 1}).judge({"policy/approx_kl": 0.25}, 7, 6)
    assert str(alarm) == (
        "[HEALTH01] step 7: approx_kl: policy/approx_kl is 0.25, above 0.1; likely cause: each iteration moves the "
        "policy too far for its rollout; fix: lower ppo.learning_rate or ppo.ppo_epochs, or set ppo.target_kl"
    )


@pytest.mark.parametrize(
    ("rule", "metric", "threshold", "start", "good", "bad"),
    [
        ("entropy", "policy/entropy", 0.3, [4.0, 2.0], [0.91], [0.89]),
        ("length", "rollout/length", 2.0, [8.0, 12.0], [19.9, 5.1], [20.1, 4.9]),
        ("unique_completions", "rollout/unique_fraction", 0.5, [1.0, 0.8], [0.46], [0.44]),
        ("repetition", "rollout/repeated_4grams", 0.2, [0.0, 0.1], [0.249], [0.251]),
    ],
)
def test_some_rules_compare_with_the_mean_of_the_first_iterations(rule, metric, threshold, start, good, bad):
    settings = {rule: {"threshold": threshold, "patience": 1}, "start": len(start)}
    for value in good:
        assert changes(monitor(**settings), metric, [*start, value]) == []
    for value in bad:
        assert changes(monitor(**settings), metric, [*start, value]) == [(3, "begins")]


@pytest.mark.parametrize(
    ("rule", "metrics", "alarm"),
    [
        ("kl_below_zero", {"objective/kl": -0.31, "objective/kl_se": 0.1}, True),
        ("kl_below_zero", {"objective/kl": -0.29, "objective/kl_se": 0.1}, False),
        ("kl_below_zero", {"objective/kl": -0.02, "objective/kl_se": 0.0}, False),  # rounding
        ("kl_over_budget", {"objective/kl": 6.1, "objective/kl_se": 0.1}, True),
        ("kl_over_budget", {"objective/kl": 5.9, "objective/kl_se": 0.1}, False),
        ("explained_variance", {"value/explained_variance": -0.1}, True),
        ("explained_variance", {"value/explained_variance": float("nan")}, False),
        ("score_length", {"objective/score_length_correlation": -0.81}, True),
        ("score_length", {"objective/score_length_correlation": 0.79}, False),
        ("stopped_fraction", {"rollout/stopped_fraction": 0.09}, True),
        ("empty_completions", {"rollout/empty_fraction": 0.11}, True),
        ("skipped_updates", {"policy/updates": 3}, True),
        ("skipped_updates", {"policy/updates": 4}, False),
        ("skipped_updates", {"policy/updates": 0.0}, True),
    ],
)
def test_each_rule_has_the_threshold_of_its_default(rule, metrics, alarm):
    made = monitor(kl_budget=6.0, **{rule: {"patience": 1}})
    assert ([a.rule.name for a in made.judge(metrics, 1, 0)] == [rule]) == alarm


def test_a_rule_without_threshold_is_off_and_so_is_the_budget_without_one():
    assert changes(monitor(clip_fraction={"threshold": None}), "policy/clip_fraction", [0.9] * 9) == []
    assert changes(monitor(), "objective/kl", [99.0] * 9, **{"objective/kl_se": 1.0}) == []


def evaluation(judge: float, score: float, half: float = 0.1) -> dict[str, float]:
    """Metrics of an evaluation whose 95 % interval has that half width."""
    return {"eval/judge": judge, "eval/judge_low": judge - half, "eval/judge_high": judge + half, "eval/score": score}


def test_over_optimisation_is_a_judge_that_falls_while_the_score_rises():
    rising = [evaluation(0.5, 0.0), evaluation(0.9, 1.0), evaluation(0.85, 2.0), evaluation(0.7, 3.0)]
    made = monitor()
    assert [[a.change for a in made.judge(m, n, n)] for n, m in enumerate(rising)] == [[], [], [], ["begins"]]
    fallen = Judged(0.9, 0.1 / 1.959964, 1.0).fall_to(Judged(0.7, 0.1 / 1.959964, 3.0))
    assert fallen == pytest.approx(0.2 / (2**0.5 * 0.1 / 1.959964))
    assert f"{JUDGE_FALL} is {fallen:.4g}, above 2" in made.records[0]["reading"]


def test_a_judge_that_falls_together_with_the_score_is_no_over_optimisation():
    both = [evaluation(0.9, 1.0), evaluation(0.2, 0.5)]
    made = monitor()
    assert [made.judge(m, n, n) for n, m in enumerate(both)] == [[], []]


def test_an_action_is_taken_when_the_alarm_begins_and_again_once_it_had_time_to_work():
    made = monitor(clip_fraction={"patience": 1, "action": "lower_lr"}, settle=3)
    acted = []
    for step in range(1, 9):
        due = made.due(made.judge({"policy/clip_fraction": 0.9}, step, step - 1))
        made.acted(due)
        acted += [step] * len(due)
    assert acted == [1, 4, 7] == made.records[0]["acted"]


def test_the_state_of_a_policy_found_good_last_is_remembered():
    made = monitor(clip_fraction={"patience": 2, "action": "rollback"})
    for step, value in enumerate([0.1, 0.1, 0.9], 1):
        made.judge({"policy/clip_fraction": value}, step, step - 1)
    assert made.sound(next(r for r in RULES if r.name == "clip_fraction")) == 1 and made.returning


def test_its_state_as_json_is_all_that_its_future_depends_on():
    series = [{"policy/clip_fraction": x, "policy/entropy": x} for x in (0.9, 0.9, 0.9, 0.9, 0.1, 0.9, 0.1, 0.1, 0.1)]
    series = [m | evaluation(0.9 - 0.1 * n, float(n)) for n, m in enumerate(series)]
    whole = monitor()
    told = [[str(a) for a in whole.judge(m, n, n)] for n, m in enumerate(series)]
    assert any(told[5:])
    for cut in range(1, len(series)):
        first, second = monitor(), monitor()
        for n in range(cut):
            first.judge(series[n], n, n)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert [[str(a) for a in second.judge(series[n], n, n)] for n in range(cut, len(series))] == told[cut:]
        assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"kl_coef": 0, "health": {"length": {"action": "raise_kl_coef"}}}, "multiplies kl_coef, which is 0"),
        ({"checkpoint_every": 0, "health": {"length": {"action": "rollback"}}}, "needs checkpoints to return to"),
        ({"keep_checkpoints": 1, "health": {"length": {"action": "rollback"}}}, "needs checkpoints to return to"),
        ({"health": {"kl_over_budget": {"action": "stop"}}}, "kl_budget, which is not set"),
    ],
)
def test_an_action_that_could_have_no_effect_is_refused(values, told):
    with pytest.raises(ValueError, match=told):
        PPOConfig.model_validate(values)


def test_rules_that_only_warn_are_no_part_of_what_determines_a_result():
    assert HealthConfig.model_validate({"length": {"threshold": 3.0}, "settle": 9}).effective() == {}
    acting = HealthConfig.model_validate({"length": {"action": "stop"}}).effective()
    assert acting == {"length": "stop beyond 2, patience 3", "start": 3}


def test_the_documentation_has_every_rule_with_its_threshold_and_patience():
    table = (Path(__file__).parents[3] / "docs/health.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("| `")]
    told = {row[0].strip("`"): row[2:4] for row in rows if len(row) == 6}
    words = {"above": "above {0:g}", "below": "below {0:g}"}
    words |= {"factor": "outside {1:g} to {0:g}", "magnitude": "outside -{0:g} to {0:g}"}
    limits = {rule.name: words[rule.breach] for rule in RULES}
    rules = HealthConfig().rules
    made = {n: [limits[n].format(r.threshold, 1 / (r.threshold or 1)), str(r.patience)] for n, r in rules.items()}
    assert told == made
    assert {rule.action for rule in rules.values()} == {"warn"}
