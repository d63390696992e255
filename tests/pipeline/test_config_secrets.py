"""Secrets in a config are found by name, by look and by value, and never repeated."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config_loading import load_config
from stages import redaction
from stages.base import InputError

PLANTED = "planted-0123456789"
CONFIG = """\
run: {name: r}
model: {path: m}
prepare: {script: p.py, creates: [x], arguments: [--out, x]}
reward: [{function: "f.py:f", arguments: {note: nothing, client: {url: "https://host/x"}}}]
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SERVICE_TOKEN", PLANTED)
    redaction.redactor.cache_clear()
    yield
    redaction.redactor.cache_clear()


def told(folder: Path, *overrides: str, config: str = CONFIG) -> str:
    (folder / "c.yaml").write_text(config)
    with pytest.raises(InputError) as caught:
        load_config(folder / "c.yaml", overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "secret", "why"),
    [
        (f"reward.0.arguments.note='it is {PLANTED}'", PLANTED, "the value of SERVICE_TOKEN"),
        ("reward.0.arguments.client.api_key=hunter2", "hunter2", "has the name of a secret"),
        ("reward.0.arguments.client={apiKey: hunter2}", "hunter2", "has the name of a secret"),
        ("reward.0.arguments.client.url='https://u:hunter2@host'", "hunter2", "URL password"),
        ("model.path=https://u:hunter2@host/m", "hunter2", "URL password"),
        ("prepare.arguments=[--password, hunter2]", "hunter2", "gives a secret to '--password'"),
        ("prepare.arguments=[--api-key=hunter2]", "hunter2", "gives a secret to '--api-key'"),
        (f"tracking.entity={'0f' * 20}", "0f0f", "W&B key"),
        (f"seed=hf_{'aB3' * 10}", "aB3aB3", "Hugging Face token"),
    ],
)
def test_a_secret_is_refused_with_its_key_and_reason_and_without_its_value(
    tmp_path: Path, override: str, secret: str, why: str
):
    message = told(tmp_path, override)
    assert message.startswith("[CONF07] override '")
    assert why in message
    assert secret not in message


def test_in_the_file_it_is_refused_with_its_line(tmp_path: Path):
    message = told(tmp_path, config=CONFIG.replace("note: nothing", "token: hunter2"))
    assert message.startswith(f"[CONF07] {tmp_path}/c.yaml:4: 'reward.0.arguments.token' has the name of a secret")
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "override",
    [
        "reward.0.arguments.pad_token=<pad>",
        f"reward.0.arguments.revision={'0f' * 20}",
        "reward.0.arguments.answer_key=gold",
        "prepare.arguments=[--tokens, '5']",
    ],
)
def test_what_only_resembles_a_secret_is_taken(tmp_path: Path, override: str):
    (tmp_path / "c.yaml").write_text(CONFIG)
    load_config(tmp_path / "c.yaml", [override])
