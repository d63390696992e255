"""When a stage is started again, how often, and when a person is needed instead."""

import pytest

from pipeline import restarts
from pipeline.config_loading import load_config
from pipeline.restarts import pause_before, with_restarts
from pipeline.signals import Relay
from stages.base import InputError


class Attempts:
    """Ends with the given codes, one after the other."""

    def __init__(self, *outcomes: int | InputError):
        self.outcomes = list(outcomes)
        self.calls: list[tuple[bool, tuple[str, ...]]] = []

    def __call__(self, again: bool, gone: tuple[str, ...]) -> int:
        self.calls.append((again, tuple(gone)))
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, InputError):
            raise outcome
        return outcome


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, not made."""
    pauses: list[float] = []
    monkeypatch.setattr(restarts.time, "sleep", pauses.append)
    return pauses


def walk(attempts: Attempts, count: int, relay: Relay | None = None, *overrides: str) -> int:
    config = load_config("config.yaml", [f"launch.restarts={count}", *overrides])
    return with_restarts(config, "sft", attempts, lambda text: None, relay or Relay())


def test_a_lost_rank_is_started_again_after_longer_and_longer_pauses(workplace, slept):
    attempts = Attempts(7, 137, 1, 0)
    assert walk(attempts, 5) == 0
    assert attempts.calls == [(False, ()), (True, ()), (True, ()), (True, ())]
    assert slept == [10.0, 20.0, 40.0]
    assert [pause_before(n) for n in (4, 5, 6, 7)] == [80.0, 160.0, 300.0, 300.0]


def test_it_ends_after_as_many_as_were_allowed(workplace, slept):
    assert walk(Attempts(7, 7, 7), 2) == 7
    assert walk(Attempts(7), 0) == 7


@pytest.mark.parametrize("code", [0, 2, 4, 5])
def test_what_a_person_has_to_mend_is_not_tried_again(workplace, slept, code):
    assert walk(Attempts(code), 3) == code
    assert slept == []


def test_a_run_that_was_asked_to_stop_stops(workplace, slept):
    relay = Relay()
    relay.received = 15
    assert walk(Attempts(143), 3, relay) == 143


def test_hosts_that_do_not_answer_are_left_out_and_come_back(workplace, slept, monkeypatch):
    (workplace / "hosts").write_text("a slots=1\nb slots=1\n")
    error = InputError("NODE03", "b: no", fix="x")
    answers = [{"b": error}, {}, {"a": error, "b": error}]
    monkeypatch.setattr(restarts, "unfit", lambda hosts: answers.pop(0))
    attempts = Attempts(error, 7, 7)
    with pytest.raises(InputError, match="NODE03"):
        walk(attempts, 5, None, "launch.hostfile=hosts")
    assert attempts.calls == [(False, ()), (True, ("b",)), (True, ())]


def test_mistakes_of_the_config_are_raised_at_once(workplace, slept):
    with pytest.raises(InputError, match="CKPT04"):
        walk(Attempts(InputError("CKPT04", "changed", fix="x")), 3)
