"""PPO whose reward is a server on this machine that fails: nothing is lost, and the rest is as if it never had."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from reward.base import RewardError, RewardUnavailable
from reward.config import RewardTerm
from stages.models.config import ModelConfig
from stages.ppo.config import PPOConfig
from stages.ppo.rewards import waiting_in
from stages.ppo.stage import run_ppo
from stages.stopping import Interrupted, StopRequest
from tests.ppo_checks import timeless
from tests.scoring_servers import Behaviour, answer, serving
from tests.toy_models import context, save_toy, write_rows

STARTS = ("the film", "a plot", "my seat", "this cast")
SIZES = {"rollout_batch_size": 4, "minibatch_size": 2, "microbatch_size": 2, "max_new_tokens": 5, "ppo_epochs": 1}
CONFIG = PPOConfig(
    steps=4,
    eval_every=2,
    eval_prompts=4,
    learning_rate=1e-3,
    checkpoint_every=0,
    max_empty_fraction=1.0,
    score_normalisation="running",
    kl_controller="adaptive",
    ema_decay=0.9,
    **SIZES,
)
OK, DOWN = answer(), answer({"detail": "loading"}, status=503)
QUICK: dict[str, Any] = {"retries": 1, "backoff_s": 0.01}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    save_toy(folder / "base")
    write_rows(folder / "prompts.jsonl", [{"prompt": s} for s in STARTS])
    return folder


def ppo(place: Path, name: str, url: str, stop: StopRequest | None = None, **remote: Any):
    """One attempt in the folder `name`; its services, and what ended it."""
    services = replace(context(place / name), stop=stop or StopRequest())
    term = RewardTerm(remote={"url": url} | QUICK | remote)
    prompts, model = place / "prompts.jsonl", ModelConfig(path=str(place / "base"))
    try:
        run_ppo(CONFIG, model, prompts, prompts, None, [term], None, None, services)
    except (RewardError, Interrupted) as end:
        return services, end
    return services, None


@pytest.fixture(scope="module")
def whole(place: Path):
    with serving() as seen:
        services, end = ppo(place, "whole", seen.address)
    assert end is None
    return services


FAILURES = {
    "in the first iteration": (2, 0),  # requests before it: two for the evaluation at step 0
    "in the third iteration": (5, 2),
    "in a held-out evaluation": (4, 2),
    "in the last evaluation": (7, 4),
}


@pytest.mark.parametrize("when", FAILURES)
def test_a_run_goes_on_after_its_server_came_back_to_the_bits_of_one_that_never_failed(when: str, place: Path, whole):
    answered, saved = FAILURES[when]
    behaviours: list[Behaviour] = [*[OK] * answered, DOWN, DOWN, OK]
    with serving(*behaviours) as seen:
        cut, end = ppo(place, when, seen.address)
        assert isinstance(end, RewardUnavailable)
        assert end.code == "REW06"
        found = cut.checkpoints.latest()
        assert (found[0] if found else 0) == saved
        rest, end = ppo(place, when, seen.address)
    assert end is None

    def numbers(*parts: Any) -> list[dict[str, float]]:
        rows = [timeless(row) for part in parts for row in part.tracker.metrics]
        return [{k: v for k, v in row.items() if not k.startswith("rollout/tokens_per")} for row in rows]

    attempts = [cut, rest] if saved else [rest]
    assert numbers(*attempts) == numbers(whole)
    first, second = (load_file(place / n / "final" / "model.safetensors") for n in ("whole", when))
    assert all(first[name].equal(second[name]) for name in first)


def test_a_refusal_keeps_the_state_too(place: Path):
    with serving(OK, OK, OK, answer({"detail": "no"}, status=403)) as seen:
        services, end = ppo(place, "refused", seen.address)
    assert (end.code, services.checkpoints.latest()[0]) == ("REW07", 1)


def test_a_request_to_stop_ends_the_wait_with_the_state_saved(place: Path):
    stop = StopRequest()

    def asked_to_stop(handler) -> None:
        stop.signal = signal.SIGTERM
        DOWN(handler)

    with serving(OK, OK, OK, asked_to_stop) as seen:
        services, end = ppo(place, "stopped", seen.address, stop, retries=100, backoff_s=30.0)
    assert isinstance(end, Interrupted)
    assert (end.step, services.checkpoints.latest()[0]) == (1, 1)


def test_the_pulse_of_the_stage_beats_while_it_waits(tmp_path: Path):
    services = context(tmp_path)
    waiting = waiting_in(services)
    waiting.beat()
    assert services.pulse.beats == 1
    assert not waiting.stopped()
    services.stop.signal = signal.SIGINT
    assert waiting.stopped()
