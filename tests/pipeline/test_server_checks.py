"""Scoring servers before anything is loaded: asked once, about real rows, and told with the fix."""

import json
from pathlib import Path

import pytest

from pipeline.config_loading import load_config
from pipeline.drift import obstacle
from pipeline.identity import Change, Identity
from pipeline.lineage import inputs_of
from pipeline.preflight import check
from pipeline.problems import exit_code
from pipeline.rundir import RunDir
from pipeline.worker_environment import passed_variables, with_tokens
from stages.base import InputError
from tests.scoring_servers import answer, raw, serving


@pytest.fixture(autouse=True)
def _here(workplace: Path) -> None:
    """A current folder with a small run."""


def config(url: str, *overrides: str, **remote: object):
    term = json.dumps({"remote": {"url": url, **remote}})
    return load_config("config.yaml", [f"reward=[{term}]", "check.reward_seconds=1", *overrides])


def test_a_server_is_asked_once_about_four_real_rows_and_an_empty_completion():
    with serving(answer(x_reward_model="judge-7")) as seen:
        found = check(config(seen.address))
    assert found.errors == []
    assert f"{seen.address}, which calls itself judge-7, on 4 samples: 9, 9, 9, 0" in found.fine["ppo"]
    assert seen.bodies == [{"prompts": ["the film"] * 4, "completions": [" is great"] * 3 + [""]}]


FAULTS = {
    "refused": (raw(b""), "REW06", 3, "was asked once without an answer"),
    "slow": (raw(b"H", pause=1.3), "REW06", 3, "no answer within 1 s"),
    "token": (answer({"detail": "who are you?"}, status=401), "REW07", 2, "answered 401: who are you?"),
    "html": (answer("<html>", kind="text/html"), "REW08", 2, "answered with 'text/html'"),
    "count": (answer({"scores": [1.0]}), "REW01", 2, "1 scores for 4 completions"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_server_is_told_after_one_try(fault: str):
    behaviour, code, exits, told = FAULTS[fault]
    with serving(behaviour) as seen:
        (error,) = check(config(seen.address, retries=5)).errors
    assert (error.code, exit_code(error), len(seen.bodies)) == (code, exits, 1)
    assert told in error.problem


def test_a_server_that_is_not_there_is_told():
    with serving() as seen:
        pass
    (error,) = check(config(seen.address)).errors
    assert (error.code, exit_code(error)) == ("REW06", 3)
    assert "ConnectError" in error.problem


def test_a_server_that_a_finished_run_needs_no_more_is_left_alone(finish):
    with serving() as seen:
        loaded = config(seen.address)
        run = RunDir.create(loaded, ["rlhf"])
        for stage in ("ppo", "evaluation"):
            finish(run, stage)
        found = check(loaded)
    assert (seen.bodies, found.errors) == ([], [])
    assert f"{seen.address} was not asked: the stages that need it are finished" in found.notes


def test_a_wait_that_the_other_ranks_cannot_outlast_is_told():
    with serving() as seen:
        options = ("launch.ranks=2", "run.hang_timeout_s=60", "ppo.microbatch_size=1")
        found = check(config(seen.address, *options, timeout_s=30, retries=1))
        assert any(note.startswith("one rank may wait 120 s for its scoring server") for note in found.notes)
        found = check(config(seen.address, *options, timeout_s=1, retries=1, max_wait_s=2))
        assert not any("scoring server" in note for note in found.notes)


def test_the_ranks_of_a_job_get_the_token_and_nobody_is_shown_it():
    loaded = config("https://scorer.example/score", token_env="SCORER_TOKEN")
    environment = {"SCORER_TOKEN": "a" * 32, "OTHER_TOKEN": "b"}
    assert passed_variables(environment, with_tokens(loaded)) == {"SCORER_TOKEN": "a" * 32}
    assert passed_variables(environment, loaded.launch) == {}


def test_a_token_in_place_of_its_variable_is_refused_and_not_shown():
    with Path("config.yaml").open("a") as file:
        file.write(f"reward: [{{remote: {{url: 'https://scorer.example/', token_env: {'5e4d7c1b' * 8}}}}}]\n")
    with pytest.raises(InputError) as error:
        load_config("config.yaml")
    assert str(error.value) == (
        "[CONF02] config.yaml:10: reward.0.remote.token_env: expected the name of an environment variable, in "
        "capitals, that ends in TOKEN, KEY, SECRET or PASSWORD; that variable holds the token; "
        "fix: change 'reward.0.remote.token_env'"
    )


def fields(**remote: object) -> dict:
    loaded = config("https://scorer.example/score", "sft.enabled=false", "reward_model.enabled=false", **remote)
    inputs = inputs_of(RunDir.at(loaded), loaded, "ppo")
    return {name: value for name, value in inputs.identity.fields.items() if name.startswith("reward[0].remote")}


def test_how_a_server_is_reached_is_no_part_of_what_a_stage_is_made_from():
    plain = fields()
    assert plain["reward[0].remote.url"] == "https://scorer.example/score"
    manners = {"timeout_s": 1, "retries": 1, "backoff_s": 9, "token_env": "A_TOKEN", "max_response_bytes": 99}
    assert fields(**manners, use_proxy=True, allow_http=True, ca_file="a.pem", max_wait_s=3) == plain
    assert fields(columns=["answer"]) != plain
    assert fields(model="x") != plain


def test_the_address_may_change_if_allowed_and_the_columns_may_not():
    identity = Identity({})
    assert obstacle(Change("reward[0].remote.url", "a", "b"), identity) is None
    assert obstacle(Change("reward[0].remote.columns", "a", "b"), identity)
    assert obstacle(Change("reward[0].weight", "1", "2"), identity)
