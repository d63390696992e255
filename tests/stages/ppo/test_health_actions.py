"""What an alarm may do to a run: learning rates, KL coefficient, a way back, an end; all of it kept over a resume."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.base import Diverged
from stages.ppo.held_out import HeldOut
from stages.ppo.loop import PPOLoop
from stages.ppo.prompts import PromptSet
from stages.ppo.state import load_state
from stages.progress import Progress
from tests.ppo_checks import same, small_tabular, timeless
from tests.ppo_toys import text
from tests.toy_models import context

ALWAYS = {"threshold": 1e-6, "patience": 1}
"""A threshold of approx_kl that every iteration exceeds."""
FAST = {"learning_rate": 0.1, "lr_schedule": "constant", "steps": 8}
ROLLBACK = {
    "health": {"length": {"threshold": 1.2, "patience": 2, "action": "rollback"}, "start": 1, "lr_factor": 0.5},
    "checkpoint_every": 1,
    "kl_coef": 0.0,
    "missing_eos": {"mode": "off"},
    "max_empty_fraction": 1.0,
}


def publish(aside: Path) -> bool:
    (aside / "policy").touch()
    return False


def loop(folder: Path, **config: Any) -> PPOLoop:
    """A walk over a tabular policy's iterations, from what is in the folder."""
    toy = small_tabular(**FAST | config)
    prompts = PromptSet(toy.problem.prompts, [text(p) for p in toy.problem.prompts], {})
    services = context(folder)
    made = PPOLoop(toy.trainer, prompts, HeldOut(toy.trainer, None, None, services, publish), services, "float32")
    made.resume()
    return made


def iterate(made: PPOLoop, count: int) -> None:
    for _ in range(count):
        made.iterate(Progress("ppo", 8, made.trainer.finished))


def rates(made: PPOLoop) -> tuple[float, float]:
    return made.trainer.policy.learning_rate(), made.trainer.value.learning_rate()


def test_lower_lr_lowers_both_learning_rates_in_the_optimizer_each_time_it_had_time_to_work(tmp_path: Path):
    made = loop(tmp_path, health={"approx_kl": ALWAYS | {"action": "lower_lr"}, "settle": 2, "lr_factor": 0.25})
    assert rates(made) == (0.1, 0.1)
    iterate(made, 1)
    assert rates(made) == (0.025, 0.025)
    iterate(made, 2)
    assert rates(made) == (0.00625, 0.00625)
    logged = made.context.tracker.series("policy/learning_rate")
    assert logged == pytest.approx([0.1, 0.025, 0.025])


def test_a_lowered_learning_rate_follows_its_schedule_and_survives_a_resume(tmp_path: Path):
    config = {"health": {"approx_kl": ALWAYS | {"action": "lower_lr"}}, "lr_schedule": "linear"}
    made = loop(tmp_path, **config)
    iterate(made, 2)
    made.checkpoint()
    resumed = loop(tmp_path, **config)
    assert rates(resumed) == rates(made) == (pytest.approx(0.1 * 0.5 * 6 / 8),) * 2
    iterate(made, 3), iterate(resumed, 3)
    assert same(resumed.trainer.state_dict(), made.trainer.state_dict())
    assert resumed.health.state_dict() == made.health.state_dict()
    rows = [timeless(row) for row in made.context.tracker.metrics[-3:]]
    assert [timeless(row) for row in resumed.context.tracker.metrics] == rows


@pytest.mark.parametrize("controller", ["fixed", "adaptive"])
def test_raise_kl_coef_multiplies_the_coefficient_and_survives_a_resume(tmp_path: Path, controller: str):
    health = {"approx_kl": ALWAYS | {"action": "raise_kl_coef"}, "kl_coef_factor": 3.0}
    config = {"health": health, "kl_coef": 0.2, "kl_controller": controller, "kl_horizon": 10**9}
    made = loop(tmp_path, **config)
    iterate(made, 2)
    assert made.context.tracker.series("objective/kl_coef") == pytest.approx([0.2, 0.6], rel=1e-6)
    made.checkpoint()
    assert loop(tmp_path, **config).trainer.kl.coef == made.trainer.kl.coef == pytest.approx(0.6, rel=1e-6)


def test_rules_that_only_warn_change_no_bit(tmp_path: Path):
    loud, quiet = loop(tmp_path / "loud", health={"approx_kl": ALWAYS}), loop(tmp_path / "quiet")
    iterate(loud, 3), iterate(quiet, 3)
    assert loud.health.monitor.counts()["approx_kl"] == 1
    assert same(loud.trainer.state_dict(), quiet.trainer.state_dict())


def brief_until_rollback(folder: Path, **config: Any) -> PPOLoop:
    """A walk up to the iteration in which a reward for brevity has led to a rollback."""
    made = loop(folder, **ROLLBACK | config)
    made.trainer.reward = brevity()
    made._save()
    while not made.health.rollbacks:
        assert made.trainer.finished < 8
        iterate(made, 1)
        if not made.health.rollbacks:
            made.checkpoint()
    return made


def brevity() -> Any:
    from reward.mixture import FunctionScores, RewardMixture, Term

    def score(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [-float(len(c)) for c in completions]

    return RewardMixture([Term("brevity", 1.0, FunctionScores("brevity", score, {}))])


def test_rollback_restores_the_last_sound_state_bit_for_bit_and_goes_on_with_other_prompts(tmp_path: Path):
    made = brief_until_rollback(tmp_path)
    (now,) = made.health.rollbacks
    (record,) = (row for row in made.health.monitor.records if row["rule"] == "length")
    assert record["step"] == now == made.trainer.finished and record["over"] == now
    found = [step for step, _ in made.context.checkpoints.complete()]
    assert max(found) == now - 2, "no checkpoint is written while a rollback may have to step over it"
    target = next(path for step, path in made.context.checkpoints.complete() if step <= now - 3)
    saved, state = load_state(target), made.trainer.state_dict()
    for role in ("policy", "value"):
        assert same(state[role]["weights"], saved[role]["weights"])
        assert same(state[role]["optimizer"], saved[role]["optimizer"])
    assert rates(made) == (0.05, 0.05)
    iterate(made, 1)
    episodes = [row["episode"] for row in made.context.tracker.rows if row["step"] == now + 1]
    assert episodes == list(range(24 * now, 24 * now + 24))


def test_a_run_killed_after_its_rollback_makes_the_same_one_again(tmp_path: Path):
    made = brief_until_rollback(tmp_path)
    resumed = loop(tmp_path, **ROLLBACK)
    resumed.trainer.reward = brevity()
    iterate(resumed, made.trainer.finished - resumed.trainer.finished)
    assert resumed.health.state_dict() == made.health.state_dict()
    assert same(resumed.trainer.state_dict(), made.trainer.state_dict())


def test_rollbacks_are_bounded(tmp_path: Path):
    health = ROLLBACK["health"] | {"max_rollbacks": 1, "lr_factor": 0.99}
    made = brief_until_rollback(tmp_path, health=health, steps=30)
    with pytest.raises(Diverged, match=r"\[HEALTH02\] step \d+: length: .* 1 rollbacks .* have not helped; .*; fix: "):
        iterate(made, 20)


def test_stop_ends_with_a_checkpoint_from_which_the_rules_judge_anew(tmp_path: Path):
    config = {"health": {"approx_kl": {"threshold": 1e-6, "patience": 2, "action": "stop"}}}
    made = loop(tmp_path, **config)
    ended = (
        r"\[HEALTH02\] step 2: approx_kl: policy/approx_kl is .*, above 1e-06; ppo.health.approx_kl.action: stop ends "
        r"the stage; the state after step 2 is saved; likely cause: .*; fix: lower ppo.learning_rate"
    )
    with pytest.raises(Diverged, match=ended):
        iterate(made, 8)
    resumed = loop(tmp_path, **config)
    assert same(resumed.trainer.state_dict(), made.trainer.state_dict()) and resumed.trainer.finished == 2
    iterate(resumed, 1)
    with pytest.raises(Diverged, match="step 4"):
        iterate(resumed, 1)
    steps = [json.loads(line)["step"] for line in (tmp_path / "alarms.jsonl").read_text().splitlines()]
    assert steps == [2, 4]


def test_a_resume_forgets_the_alarms_after_its_checkpoint(tmp_path: Path):
    made = loop(tmp_path, health={"approx_kl": ALWAYS | {"patience": 2}})
    iterate(made, 1)
    made.checkpoint()
    iterate(made, 1)
    assert (tmp_path / "alarms.jsonl").read_text()
    loop(tmp_path, health={"approx_kl": ALWAYS | {"patience": 2}})
    assert (tmp_path / "alarms.jsonl").read_text() == ""
