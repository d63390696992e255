"""Scores from real servers on this machine, well-behaved and hostile ones; none is trusted, waited for or repeated
beyond what the config says."""

import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from reward.base import NonFiniteScore, RewardError, RewardUnavailable
from reward.remote import RemoteScorer, Waiting
from reward.remote_config import RemoteConfig
from stages.redaction import secrets_of
from tests.scoring_servers import Seen, answer, raw, self_signed, serving
from tests.server_faults import NO_ANSWERS, NOT_FINITE, PASSING, SLOW

PROMPTS, COMPLETIONS = ["a", "b", "c"], ["x", "yy", ""]
TOKEN = "token-of-the-test-01234567"


def config(seen: Seen, **changes: object) -> RemoteConfig:
    quick = {"url": seen.address, "timeout_s": 5.0, "retries": 0, "backoff_s": 0.01}
    return RemoteConfig(**quick | changes)


def scores(remote: RemoteConfig, waiting: Waiting | None = None) -> list[float]:
    columns = {"label": [1, 2, 3], "private": ["p", "q", "r"]}
    return RemoteScorer("remote", remote, waiting=waiting)(PROMPTS, COMPLETIONS, columns)


def refusal(seen: Seen, **changes: object) -> RewardError:
    with pytest.raises(RewardError) as error:
        scores(config(seen, **changes))
    return error.value


def test_batches_are_posted_in_order_with_the_columns_that_are_named_and_no_others():
    with serving() as seen:
        assert scores(config(seen, batch_size=2, columns=["label"])) == [1.0, 2.0, 0.0]
    assert seen.bodies == [
        {"prompts": ["a", "b"], "completions": ["x", "yy"], "columns": {"label": [1, 2]}},
        {"prompts": ["c"], "completions": [""], "columns": {"label": [3]}},
    ]
    assert seen.headers[0]["content-type"] == "application/json"
    assert "authorization" not in seen.headers[0]


def test_a_column_that_the_data_lacks_is_named():
    with serving() as seen:
        assert "'absent', which is no column" in str(refusal(seen, columns=["absent"]))
        assert seen.bodies == []


def test_the_token_is_sent_and_in_no_message(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_TOKEN", TOKEN)
    with serving(answer({"detail": f"unknown token {TOKEN}\x1b[31m\r\n"}, status=401)) as seen:
        error = refusal(seen, token_env="JUDGE_TOKEN", retries=3)
    assert seen.headers[0]["authorization"] == f"Bearer {TOKEN}"
    assert str(error) == (
        f"[REW07] remote: {seen.address} answered 401: unknown token [token] [31m; "
        "fix: look at the token in JUDGE_TOKEN"
    )
    assert len(seen.bodies) == 1, "a refusal is not repeated"


@pytest.mark.parametrize("value", [None, "", "short", "with a blank in it", "line\nbreak-0123456"])
def test_a_token_that_is_missing_or_none_is_told_before_anything_is_sent(
    value: str | None, monkeypatch: pytest.MonkeyPatch
):
    if value is not None:
        monkeypatch.setenv("JUDGE_TOKEN", value)
    with serving() as seen:
        error = refusal(seen, token_env="JUDGE_TOKEN")
    assert error.code == "REW06"
    assert "JUDGE_TOKEN" in error.problem
    assert not value or value not in str(error)
    assert seen.bodies == []


@pytest.mark.parametrize("name", ["TOKEN", "JUDGE_TOKEN", "API_KEY", "MY_SECRET", "SCORER_PASSWORD"])
def test_every_variable_that_may_hold_the_token_is_known_to_the_filter_of_secrets(name: str):
    assert RemoteConfig(url="https://a/score", token_env=name).token_env == name
    assert secrets_of({name: TOKEN, "HOME": "/nowhere"}) == {name: TOKEN}


@pytest.mark.parametrize("name", ["JUDGE", "judge_token", "TOKEN_OF_JUDGE", TOKEN, "MONKEY"])
def test_a_variable_that_the_filter_would_not_know_is_refused(name: str):
    with pytest.raises(ValidationError, match="token_env"):
        RemoteConfig(url="https://a/score", token_env=name)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://scorer.example/score", "http:// would send"),
        ("http://10.0.0.7:8000/score", "http:// would send"),
        ("http://127.0.0.1.example/", "http:// would send"),
        ("https://user:word@scorer.example/", "without user and password"),
        ("https://scorer.example/?token=1", "without query"),
        ("ftp://scorer.example/", "expected https://host/path"),
        ("https:///score", "expected https://host/path"),
        ("https://scorer.example:99999/", "Port out of range"),
    ],
)
def test_addresses_that_would_leak_or_lead_nowhere_are_refused(url: str, told: str):
    with pytest.raises(ValidationError, match=told):
        RemoteConfig(url=url)


@pytest.mark.parametrize("url", ["http://localhost:8000/score", "http://127.0.0.9/", "http://[::1]:8000/score"])
def test_this_machine_may_be_asked_unencrypted(url: str):
    assert RemoteConfig(url=url).url == url
    assert RemoteConfig(url="http://10.0.0.7/", allow_http=True).allow_http


@pytest.mark.parametrize("fault", NO_ANSWERS)
def test_what_is_no_answer_is_refused_at_once_with_the_reason(fault: str):
    expected = NO_ANSWERS[fault]
    with serving(expected.behaviour) as seen:
        error = refusal(seen, retries=3)
    assert (error.code, len(seen.bodies)) == (expected.code, 1)
    assert expected.told in error.problem
    assert len(str(error)) < 600
    assert str(error).isprintable()


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_number_that_is_none_is_told_as_that_of_a_function_is(value: str):
    fault = NOT_FINITE[value]
    with serving(fault.behaviour) as seen, pytest.raises(NonFiniteScore) as error:
        scores(config(seen))
    assert fault.told in error.value.problem


@pytest.mark.parametrize("fault", SLOW)
def test_a_slow_server_is_given_up_after_the_time_for_the_whole_exchange(fault: str):
    with serving(SLOW[fault]) as seen:
        begun = time.monotonic()
        error = refusal(seen, timeout_s=0.3)
        assert time.monotonic() - begun < 1.9
    assert (error.code, type(error)) == ("REW06", RewardUnavailable)
    assert "no answer within 0.3 s" in error.problem


@pytest.mark.parametrize("fault", PASSING)
def test_what_may_pass_is_tried_again_with_one_line_each(fault: str):
    lines: list[str] = []
    behaviour = PASSING[fault].behaviour
    with serving(behaviour, behaviour, answer()) as seen:
        assert scores(config(seen, retries=2), Waiting(tell=lines.append)) == [1.0, 2.0, 0.0]
    assert [line.partition("; ")[2] for line in lines] == ["try 2 of 3 in 0.01 s", "try 3 of 3 in 0.02 s", ""]
    assert all(PASSING[fault].told in line for line in lines[:2])
    assert lines[2] == f"remote: {seen.address} answers again, after 0 s"
    assert seen.bodies[0] == seen.bodies[1] == seen.bodies[2]


def test_a_server_that_is_not_there_is_given_up_with_the_number_of_tries_and_the_way_on():
    with serving() as seen:
        pass
    with pytest.raises(RewardUnavailable) as error:
        scores(config(seen, retries=2), Waiting(tell=lambda line: None))
    assert str(error.value).startswith(f"[REW06] remote: {seen.address} was asked 3 times without an answer; the last")
    assert str(error.value).endswith("; fix: start that server; the same command continues")


def test_waits_double_up_to_the_longest_and_give_way_to_a_longer_wish_of_the_server():
    remote = RemoteConfig(url="https://a/", backoff_s=2.0, max_wait_s=30.0, retries=2, timeout_s=10.0)
    assert [remote.pause_before(n) for n in (1, 2, 3, 4, 5, 1000)] == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert [remote.pause_before(1, asked) for asked in (0.5, 7.0, 1e9, -5.0)] == [2.0, 7.0, 30.0, 2.0]
    assert remote.longest_wait_s == 3 * 10.0 + 2 * 30.0


def test_retry_after_is_respected_and_bounded():
    lines: list[str] = []
    with serving(
        answer("", status=429, retry_after="1"), answer("", status=503, retry_after="86400"), answer()
    ) as seen:
        remote = config(seen, retries=2, max_wait_s=1.2)
        assert scores(remote, Waiting(tell=lines.append)) == [1.0, 2.0, 0.0]
    assert [line.rpartition(" in ")[2] for line in lines[:2]] == ["1 s", "1.2 s"]
    waits = [after - before for before, after in zip(seen.times, seen.times[1:], strict=False)]
    assert waits[0] >= 1.0
    assert waits[1] >= 1.2


def test_a_date_in_retry_after_is_understood():
    lines: list[str] = []
    with serving(answer("", status=503, retry_after="Wed, 21 Oct 2099 07:28:00 GMT"), answer()) as seen:
        scores(config(seen, retries=1, max_wait_s=0.05), Waiting(tell=lines.append))
    assert lines[0].endswith("in 0.05 s")


def test_the_pulse_beats_while_a_server_is_waited_for_and_a_request_to_stop_ends_it():
    beats: list[None] = []
    waiting = Waiting(beat=lambda: beats.append(None), stopped=lambda: len(beats) >= 3)
    with serving(raw(b"", pause=1.5)) as seen, pytest.raises(RewardUnavailable, match="asked to end"):
        scores(config(seen, timeout_s=60.0, retries=100), waiting)
    assert len(beats) == 3


def test_a_server_that_changes_its_model_is_refused():
    first, second = answer(x_reward_model="one"), answer(x_reward_model="two")
    with serving(first, first, second) as seen:
        scorer = RemoteScorer("remote", config(seen))
        for _ in range(2):
            assert scorer(PROMPTS, COMPLETIONS, {}) == [1.0, 2.0, 0.0]
        with pytest.raises(RewardUnavailable, match="answers as model two, expected one"):
            scorer(PROMPTS, COMPLETIONS, {})
    with serving(first) as seen:
        assert "answers as model one, expected three" in str(refusal(seen, model="three"))


def test_a_certificate_that_nobody_signed_is_refused_unless_it_is_the_one_to_trust(tmp_path: Path):
    certificate = self_signed(tmp_path)
    with serving(certificate=certificate) as seen:
        error = refusal(seen, retries=3)
        assert (error.code, seen.bodies) == ("REW07", [])
        assert "certificate that is not trusted" in error.problem
        assert scores(config(seen, ca_file=str(tmp_path / "certificate.pem"))) == [1.0, 2.0, 0.0]


def test_a_certificate_of_another_address_is_refused(tmp_path: Path):
    certificate = self_signed(tmp_path, "127.0.0.2")
    with serving(certificate=certificate) as seen:
        error = refusal(seen, ca_file=str(tmp_path / "certificate.pem"))
    assert error.code == "REW07"
    assert "certificate that is not trusted" in error.problem


def test_proxies_of_the_environment_hold_only_if_asked_for(monkeypatch: pytest.MonkeyPatch):
    with serving(answer({"scores": [7.0, 7.0, 7.0]})) as proxy, serving() as seen:
        monkeypatch.setenv("http_proxy", proxy.address.removesuffix("/score"))
        monkeypatch.setenv("no_proxy", "")
        assert scores(config(seen)) == [1.0, 2.0, 0.0]
        assert scores(config(seen, use_proxy=True)) == [7.0, 7.0, 7.0]
