"""Secrets by value, by shape and by name go; everything else stays as it is."""

import html
import json

import pytest

from stages.redaction import Redactor, is_secret_name, secrets_of

ODD = "correct \"horse\" & 'battery' \\ stäple <1>"
ENVIRONMENT = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "SERVICE_PASSWORD": ODD,
    "DATABASE_URL": "postgresql://trainer:n0t%20f0r-the-l0g@db/scores",
    "AWS_ACCESS_KEY_ID": "abcdefgh12345",
    "SHORT_TOKEN": "true",
    "PWD": "/home/someone/project",
    "HOME": "/nowhere",
    "MODEL_PATH": "runs/model-of-mine",
}


@pytest.fixture
def redactor() -> Redactor:
    return Redactor(secrets_of(ENVIRONMENT))


def test_secrets_of_the_environment_are_long_values_under_their_names_and_passwords_in_urls():
    assert secrets_of(ENVIRONMENT) == {
        "WANDB_API_KEY": ENVIRONMENT["WANDB_API_KEY"],
        "SERVICE_PASSWORD": ODD,
        "AWS_ACCESS_KEY_ID": "abcdefgh12345",
        "DATABASE_URL": "n0t f0r-the-l0g",
    }


def test_keys_in_the_files_where_libraries_keep_them_are_secrets(tmp_path):
    (tmp_path / "token").write_text("hub-token-in-a-file\n")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key-in-a-netrc-file\n")
    found = secrets_of({"HF_HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")})
    assert found == {"HF_TOKEN": "hub-token-in-a-file", "WANDB_API_KEY": "key-in-a-netrc-file"}


@pytest.mark.parametrize("spelled", [str, repr, json.dumps, html.escape])
def test_a_value_goes_however_it_is_spelled(redactor: Redactor, spelled):
    shown = redactor.text(f"environ({spelled(ODD)})")
    assert "[redacted SERVICE_PASSWORD]" in shown
    assert "horse" not in shown


SHAPED = {
    "Hugging Face token": "hf_" + "a1B2c3D4e5" * 3,
    "API key": "sk-" + "proj-a1B2c3D4e5f6G7h8",
    "AWS key": "AKIA" + "ABCDEFGHIJ234567",
    "GitHub token": "ghp_" + "a1B2c3D4e5" * 4,
    "bearer token": "abcdef.0123456789.xyz",
    "URL password": "user:pass",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",
}
AROUND = {"bearer token": "Authorization: Bearer {}", "URL password": "https://{}@host.example/x"}


@pytest.mark.parametrize("kind", SHAPED)
def test_what_looks_like_a_secret_goes_without_being_known(redactor: Redactor, kind: str):
    around = AROUND.get(kind, "found {} there")
    assert redactor.text(around.format(SHAPED[kind])) == around.format(f"[redacted {kind}]")
    assert redactor.kind_of(around.format(SHAPED[kind])) == kind


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("api_key=hunter2hunter2 rest", "api_key=[redacted api_key] rest"),
        ("'wandb_key': 'abcdefgh'", "'wandb_key': '[redacted wandb_key]'"),
        ("password: abcdefgh12", "password: [redacted password]"),
    ],
)
def test_what_is_assigned_to_the_name_of_a_secret_goes(redactor: Redactor, text: str, shown: str):
    assert redactor.text(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "ppo.max_new_tokens=5  rollout/tokens_per_second 812.3",
        "eos_token: <|im_end|>  pad_token='<pad>'",
        "git revision d89f5a3eec28a731931700369cd4e494d6690990",
        "sha256 " + "fedcba9876543210" * 4,
        "https://example.com/a@b  git@host:repository  step 3/10  loss 2.31",
        "/home/someone/project/runs/model-of-mine",
    ],
)
def test_ordinary_lines_stay_as_they_are(redactor: Redactor, text: str):
    assert redactor.text(text) == text


def test_of_a_models_text_only_exact_values_go(redactor: Redactor):
    text = "password: abcdefgh12 hf_" + "a" * 30
    assert redactor.values(text) == text
    assert redactor.values(f"the key is {ENVIRONMENT['WANDB_API_KEY']}!") == "the key is [redacted WANDB_API_KEY]!"


def test_a_command_loses_what_follows_an_option_or_a_key(redactor: Redactor):
    command = ["rlhf", "run", "a.yaml", "--token", "abc", "x.api_key=def", "--hf-token=ghi", "ppo.kl_coef=0.1"]
    assert redactor.command(command) == [
        *("rlhf", "run", "a.yaml", "--token", "[redacted token]"),
        *("x.api_key=[redacted x.api_key]", "--hf-token=[redacted hf-token]", "ppo.kl_coef=0.1"),
    ]


def test_plain_data_loses_values_under_the_names_of_secrets_and_keeps_its_shape(redactor: Redactor):
    data = {"client": {"apiKey": "abc", "tries": 3}, "list": [ODD, None, 1.5], "pad_token": "<pad>"}
    assert redactor.tree(data) == {
        "client": {"apiKey": "[redacted apiKey]", "tries": 3},
        "list": ["[redacted SERVICE_PASSWORD]", None, 1.5],
        "pad_token": "<pad>",
    }


@pytest.mark.parametrize(
    "name", ["api_key", "apiKey", "HF_TOKEN", "client.secret", "db-password", "wandb_key", "token"]
)
def test_these_are_names_of_secrets(name: str):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["max_new_tokens", "eos_token", "key", "answer_key", "tokenizer", "passwords_file", "secretary", "monkey"]
)
def test_these_are_not(name: str):
    assert not is_secret_name(name)
