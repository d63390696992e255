"""`rlhf serve-reward` as a process of its own: who may ask what, and PPO that is driven by it while it is killed."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import uvicorn

from pipeline import serve_reward
from reward.config import RewardTerm
from reward.learned import ModelScores
from reward.mixture import Texts
from reward.remote import RemoteScorer, Waiting
from reward.remote_config import RemoteConfig
from stages.base import InputError
from stages.models.config import ModelConfig
from stages.models.load import load_tokenizer, source_of
from stages.models.roles import Roles
from stages.ppo.reward_models import RewardModels
from stages.ppo.rewards import RewardBuilder
from stages.render import Rendered, Renderer, collate
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.stage import run_reward_model
from tests.scoring_servers import self_signed
from tests.served_rewards import ENVIRONMENT, TOKEN, Server, command, served
from tests.toy_models import context, save_toy, write_rows

STARTS = ("the film", "a plot", "my seat", "this cast")
PAIRS = (["the film", "a plot", "my seat"], [" is good.", " is bad!", ""])
CONFIG = """\
run: {{name: {name}, root: {folder}/runs}}
model: {{path: {folder}/base}}
data: {{prompts: {{train: {folder}/prompts.jsonl}}}}
sft: {{enabled: false}}
reward_model: {{enabled: false}}
reward: [{{remote: {{url: "{url}", token_env: SCORER_TOKEN, retries: 2, backoff_s: 0.2}}}}]
ppo: {{steps: 12, rollout_batch_size: 4, minibatch_size: 4, microbatch_size: 4, max_prompt_tokens: 16,
       max_new_tokens: 6, ppo_epochs: 1, learning_rate: 1e-3, checkpoint_every: 0, max_empty_fraction: 1.0,
       score_normalisation: running}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy base, prompts, and a reward model by the real stage in `reward_model/final`."""
    folder = tmp_path_factory.mktemp("served")
    base = save_toy(folder / "base")
    pairs = [{"prompt": s, "chosen": " is good.", "rejected": " is bad!"} for s in STARTS]
    preferences = write_rows(folder / "preferences.jsonl", pairs)
    config = RewardModelConfig(max_steps=2, batch_size=4, microbatch_size=4, learning_rate=1e-2)
    services = context(folder / "reward_model")
    run_reward_model(config, ModelConfig(path=str(base)), preferences, None, None, services, [])
    write_rows(folder / "prompts.jsonl", [{"prompt": s} for s in STARTS])
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """Asked by https, with a certificate of its own."""
    options = ("--port", 0, "--token-env", "SCORER_TOKEN", "--max-batch", 8, "--certificate", self_signed(folder))
    with served(folder / "reward_model" / "final", *options) as one:
        one.certificate = str(folder / "certificate.pem")
        yield one


def asked(server: Server, monkeypatch: pytest.MonkeyPatch, prompts: Sequence, completions: Sequence) -> list[float]:
    monkeypatch.setenv("SCORER_TOKEN", TOKEN)
    config = RemoteConfig(url=server.url, token_env="SCORER_TOKEN", ca_file=server.certificate, retries=0, batch_size=2)
    return RemoteScorer("remote", config, waiting=Waiting())(prompts, completions, {})


def test_scores_are_those_of_a_model_term(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch):
    final = folder / "reward_model" / "final"
    tokenizer = load_tokenizer(source_of(final))
    term = RewardTerm(model=str(final))
    model = ModelConfig(path=str(folder / "base"))
    builder = RewardBuilder([term], RewardModels(None, model, Roles(model), tokenizer, lambda module: module))
    (source,) = (term.source for term in builder.mixture.terms)
    assert isinstance(source, ModelScores)
    prompts, completions = (*PAIRS[0], [{"role": "user", "content": "a film?"}]), (*PAIRS[1], "good")
    rows = [Renderer(tokenizer).pair(p, c) for p, c in zip(prompts, completions, strict=True)]

    def read(model) -> torch.Tensor:
        ids, attended, _ = collate([Rendered(row.prompt_ids, row.completion_ids) for row in rows], 0)
        return model.scores(ids, attended)

    with torch.no_grad():
        expected = source(Texts(prompts, completions, {}), read)
    found = asked(server, monkeypatch, prompts, completions)
    assert found == pytest.approx(expected.tolist(), abs=1e-5)
    assert len(set(found)) == 4


MALFORMED = {
    "no json": (b"{", 400, "Invalid JSON"),
    "no object": ([1], 422, "Input should be an object"),
    "no completions": ({"prompts": ["a"]}, 422, "completions: Field required"),
    "a number": ({"prompts": ["a"], "completions": [7]}, 422, "completions.0: Input should be a valid string"),
    "strange key": ({"prompts": ["a"], "completions": ["b"], "run": "x"}, 422, "run: Extra inputs"),
    "uneven": ({"prompts": ["a", "b"], "completions": ["c"]}, 422, "2 prompts for 1 completions"),
    "nothing": ({"prompts": [], "completions": []}, 422, "found 0 pairs, expected 1 to 8"),
    "too many": ({"prompts": ["a"] * 9, "completions": ["c"] * 9}, 422, "found 9 pairs, expected 1 to 8"),
    "too long": ({"prompts": ["a" * 200], "completions": ["b"]}, 422, "[LEN01] sample 0 has 203 tokens"),
    "no turn": ({"prompts": [[]], "completions": ["b"]}, 422, "prompts.0"),
    "surrogate": (b'{"prompts": ["\\ud800"], "completions": ["b"]}', 400, "Invalid JSON"),
}


@pytest.mark.parametrize("request_", MALFORMED)
def test_a_malformed_request_is_told_what_is_wrong(request_: str, server: Server):
    content, status, told = MALFORMED[request_]
    answer = server.post(content)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert told in answer.json()["detail"]


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", f"Bearer {TOKEN}0", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "é"]
)
def test_without_the_token_nothing_is_read(authorization: str, server: Server):
    answer = server.post(b"{", authorization=authorization.encode())
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert TOKEN not in answer.text


def test_another_content_type_and_a_body_that_is_too_large_are_refused(server: Server):
    assert server.post({}, **{"content-type": "text/plain"}).status_code == 415
    with begun_request(server) as connection:  # whose head tells no length
        connection.sendall(b"%x\r\n" % (17 << 20) + b" " * (17 << 20))
        assert connection.recv(64).startswith(b"HTTP/1.1 413 ")


@contextmanager
def begun_request(server: Server) -> Iterator[socket.socket]:
    with (
        socket.create_connection(("127.0.0.1", int(server.port)), timeout=30) as plain,
        server.trusted.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        head = f"POST /score HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\n"
        connection.sendall(head.encode() + b"transfer-encoding: chunked\r\n\r\n")
        yield connection


def test_health_names_the_model_and_answers_carry_its_name_and_the_request_s(server: Server):
    health = server.request("GET", server.url.replace("/score", "/health"))
    assert health.json() == {"status": "ok", "model": server.model}
    answer = server.post({"prompts": ["a"], "completions": ["b"], "columns": {"label": [1]}}, **{"x-request-id": "7"})
    assert (answer.headers["x-reward-model"], answer.headers["x-request-id"]) == (server.model, "7")
    assert list(answer.json()) == ["scores"]
    assert server.request("GET", server.url.replace("/score", "/docs")).status_code == 404


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--host", "0.0.0.0"), "[SERVE01] --host 0.0.0.0 can be reached from other machines"),
        (("--host", "scorer.example"), "[SERVE01] --host scorer.example can be reached"),
        (("--token-env", "JUDGE"), "[SERVE01] --token-env JUDGE: its value would not be kept out"),
        (("--token-env", "ABSENT_TOKEN"), "[SERVE01] ABSENT_TOKEN has no token of 32 printable characters"),
        (("--host", "192.0.2.1", "--token-env", "SCORER_TOKEN"), "[SERVE02] cannot listen at 192.0.2.1, port 8000"),
    ],
)
def test_what_cannot_be_served_safely_is_refused_before_a_model_is_loaded(
    options: tuple[str, ...], told: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    from pipeline.cli import main

    monkeypatch.setenv("SCORER_TOKEN", TOKEN)
    monkeypatch.setattr(serve_reward, "_serve", lambda *unused: pytest.fail("it was served"))
    with pytest.raises(SystemExit) as end:
        main(["serve-reward", str(folder / "reward_model" / "final"), *options])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(told)


def test_a_port_that_is_taken_is_refused(server: Server):
    with pytest.raises(InputError, match=r"SERVE02.*Address already in use"):
        serve_reward._bound("127.0.0.1", int(server.port))


def test_who_asks_as_soon_as_the_address_is_told_is_heard(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    from pipeline.cli import main

    def run(self: uvicorn.Server, sockets: Sequence[socket.socket]) -> None:
        """In its place before the server has begun."""
        port = int(capsys.readouterr().out.partition("url: http://127.0.0.1:")[2].partition("/")[0])
        assert sockets[0].getsockname()[1] == port
        socket.create_connection(("127.0.0.1", port), timeout=1).close()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    with pytest.raises(SystemExit) as end:
        main(["serve-reward", str(folder / "reward_model" / "final"), "--port", "0"])
    assert end.value.code == 0


def test_missing_packages_are_told_with_what_installs_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError) as error:
        serve_reward._require_packages()
    assert str(error.value) == (
        "[DEP02] rlhf serve-reward needs uvicorn, which is not installed; fix: pip install 'rlhf-pipeline[serve]'"
    )


def rlhf(folder: Path, name: str, url: str) -> subprocess.Popen:
    file = folder / f"{name}.yaml"
    file.write_text(CONFIG.format(name=name, folder=folder, url=url))
    return subprocess.Popen(
        command("run", file), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(process: subprocess.Popen) -> tuple[int, str]:
    printed, _ = process.communicate(timeout=400)
    return process.returncode, printed


def steps(run: Path) -> list[int]:
    file = run / "ppo" / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [row["step"] for row in rows if "objective/score" in row]


def test_ppo_waits_for_a_killed_server_keeps_its_state_and_goes_on_to_the_same_bits(folder: Path):
    final, run = folder / "reward_model" / "final", folder / "runs" / "cut"
    with served(final, "--port", 0, "--token-env", "SCORER_TOKEN") as server:
        whole = finished(rlhf(folder, "whole", server.url))
        assert whole[0] == 0, whole[1]
        process, deadline = rlhf(folder, "cut", server.url), time.monotonic() + 300
        while 2 not in steps(run) and time.monotonic() < deadline:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGKILL)
        code, printed = finished(process)
    assert code == 3, printed
    last = steps(run)[-1]
    assert 2 <= last < 12
    for told in ("; try 2 of 3 in 0.2 s", "; try 3 of 3 in 0.4 s", f"ppo: the state after step {last} is saved\n"):
        assert printed.count(told) >= 1, printed
    assert f"[REW06] remote: {server.url} was asked 3 times without an answer; the last time: ConnectError" in printed
    assert [path.name for path in (run / "ppo" / "checkpoints").iterdir()] == [f"step-{last:06d}"]

    code, refused = finished(rlhf(folder, "cut", server.url))
    assert (code, refused.count("[REW06]")) == (3, 1), "without the server the run is refused at once"
    with served(final, "--port", server.port, "--token-env", "SCORER_TOKEN"):
        code, resumed = finished(rlhf(folder, "cut", server.url))
    assert code == 0, resumed
    assert "resuming from" in resumed
    assert steps(run) == list(range(1, 13))
    hashes = [
        json.loads((folder / "runs" / n / "ppo" / "stage.json").read_text())["final_hash"] for n in ("whole", "cut")
    ]
    assert hashes[0] == hashes[1]
    written = [path for path in (folder / "runs").rglob("*") if path.is_file()]
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []
    assert TOKEN not in whole[1] + printed + refused + resumed
