"""When silence has lasted: by the clock of the one who looks; and the stacks of a process that is stopped.

The whole of it, in a real run, is row R23 of the scoreboard.
"""

import os
import subprocess
import sys

import pytest

from pipeline import watchdog
from pipeline.ranks import Ranks
from pipeline.watchdog import Silence, end_with_stacks

STOPPED = """
import faulthandler, os, signal, threading, time

def wait():
    while True:
        time.sleep(0.001)

def stands_still():
    os.kill(os.getpid(), signal.SIGSTOP)

def runs_on():
    while True:
        pass

faulthandler.enable()
for _ in range(4):
    threading.Thread(target=wait, daemon=True).start()
stands_still()
runs_on()
"""


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


def test_the_stacks_of_stopped_processes_are_those_of_where_they_stopped():
    children = [subprocess.Popen([sys.executable, "-c", STOPPED], stderr=subprocess.PIPE, text=True) for _ in range(20)]
    for child in children:
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    for child in children:
        end_with_stacks(child)
        stacks = child.stderr.read()
        assert "in stands_still" in stacks and "in runs_on" not in stacks
