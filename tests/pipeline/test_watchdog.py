"""When silence has lasted: by the clock of the one who looks. What follows from it is row R23 of the scoreboard."""

import pytest

from pipeline import watchdog
from pipeline.ranks import Ranks
from pipeline.watchdog import Silence


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be moved by hand."""
    now = [100.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    return now


def looks(silence: Silence, clock: list[float], *beats_after: tuple[float, int]) -> list[bool]:
    verdicts = []
    for seconds, beats in beats_after:
        clock[0] += seconds
        verdicts.append(silence.lasts(beats))
    return verdicts


def test_silence_lasts_once_the_pulse_stands_still_for_the_limit(clock: list[float]):
    silence = Silence(3.0)
    assert looks(silence, clock, (1, 7), (1, 7), (1, 7), (1, 7)) == [False, False, False, True]


def test_every_beat_begins_it_anew(clock: list[float]):
    silence = Silence(3.0)
    assert looks(silence, clock, (1, 7), (1, 7), (1, 7), (1, 8), (1, 8), (1, 8), (1, 8)) == [False] * 6 + [True]


def test_looks_that_come_late_on_a_busy_machine_count_in_full(clock: list[float]):
    silence = Silence(10.0)
    assert looks(silence, clock, (1, 7), (4, 7), (4, 7), (4, 7)) == [False, False, False, True]


def test_an_hour_in_which_the_watcher_was_stopped_too_is_no_silence(clock: list[float]):
    silence = Silence(10.0)
    assert looks(silence, clock, (1, 7), (3600, 7), (1, 8)) == [False, False, False]


def test_what_was_before_the_beginning_is_no_silence(clock: list[float]):
    silence = Silence(3.0)
    assert looks(silence, clock, (1, 7), (1, 7), (1, 7)) == [False] * 3
    silence.begin()
    assert looks(silence, clock, (1, 7), (1, 7), (1, 7)) == [False, False, True]


def test_ranks_wait_for_one_another_for_longer_than_the_watchdog_does():
    assert Ranks.from_environment(30.0).world.timeout_s > 35.0
    assert Ranks.from_environment(None).world.timeout_s > 86400.0
