"""Secrets that must not leak: R35."""

import base64
import html
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from scripts.benchmark import tiny_files
from scripts.benchmark.scoreboard import Figure, Row

ENVIRONMENT: Mapping[str, str] = {
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "89abcdef",
    "HF_TOKEN": "hf_" + "QwErTyUiOpAsDfGhJkLzXcVbNmQwErTyUi",
    "OPENAI_API_KEY": "sk-" + "proj-Zx9Yw8Vu7Ts6Rq5Po4Nm3Lk2Ji1H",
    "SERVICE_PASSWORD": "correct \"horse\" & 'battery' \\ stäple <1>",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYplanted",
    "DEPLOY_KEY": "-----BEGIN PRIVATE KEY-----\nMIIBVwIBADANBgkqhkiG9w0planted\n-----END PRIVATE KEY-----",
    "DATABASE_URL": "postgresql://trainer:n0t-f0r-the-l0g@db.example/scores",
}
"""Secrets of a real run, which its reward function prints and raises with."""
REFUSED: Mapping[str, tuple[str, str]] = {
    "key in arguments": ("reward.0.arguments.client.api_key", "planted-hunter2-key"),
    "shape under a plain name": ("reward.0.arguments.note", "ghp_" + "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8"),
    "URL with a password": ("reward.0.arguments.url", "https://user:planted-pass-77@scores.example/v1"),
    "bearer header": ("reward.0.arguments.header", "Bearer planted.bearer.0123456789abcdef"),
    "option of the prepare script": ("prepare.arguments", "[--password, planted-option-55]"),
    "W&B key as a value": ("tracking.project", "fedcba98" * 5),
}
"""Secrets that a config or an override brings: key and value."""
LEAKY = """\
import json, os, sys
calls = []

def leaky(prompts, completions, **columns):
    print(os.environ, *os.environ.values(), sep="\\n", flush=True)
    print(json.dumps(dict(os.environ)), file=sys.stderr, flush=True)
    calls.append(1)
    if os.environ.get("LEAKY_RAISES") in ("everywhere", *(sys.argv[1:2] if len(calls) > 3 else ())):
        raise RuntimeError(f"no connection with {os.environ}")
    return [float(len(text)) for text in completions]
"""
DEADLINE = 900


def leaks(work: Path, quick: bool) -> Figure:
    """A real run and a crash whose reward function tells everything, then configs with secrets; what was written."""
    told, expected = _runs(work, quick)
    refused, answers = _refusals(work)
    (work / "terminal.txt").write_text(told + answers)
    secrets = dict(ENVIRONMENT) | {"DATABASE_URL": "n0t-f0r-the-l0g"}
    secrets |= {name: _secret_of(value) for name, (_, value) in REFUSED.items()}
    found = {name: places for name, value in secrets.items() if (places := list(_places(work, value)))}
    filtered = [name for name in ENVIRONMENT if f"[redacted {name}]" in told]
    counted = sum(1 for _ in _written(work))
    summary = (
        f"{sum(map(len, found.values()))} hits of {len(secrets)} secrets in {counted} files; "
        f"{len(filtered)}/{len(ENVIRONMENT)} seen filtered, {refused}/{len(REFUSED)} configs refused"
    )
    passed = not found and expected and len(filtered) == len(ENVIRONMENT) and refused == len(REFUSED)
    return Figure(summary, passed, {"found": found, "filtered": filtered, "ran_as_expected": expected})


def _runs(work: Path, quick: bool) -> tuple[str, bool]:
    """What the terminal showed, and whether the run ended well, the crashes did not, and W&B logged; quick: a crash."""
    (work / "leaky.py").write_text(LEAKY)
    model = tiny_files.model(work / "good")
    config = str(tiny_files.config(work / "config.yaml", model, work / "runs"))
    sizes = ["ppo.steps=2", "ppo.rollout_batch_size=8", "ppo.minibatch_size=8", "ppo.microbatch_size=8"]
    sizes += [f"data.prompts.eval={work}/good/prompts.eval.jsonl", "ppo.eval_prompts=8", "evaluation.prompts=8"]
    sizes += ["sft.max_steps=2", "reward_model.max_steps=2", "ppo.checkpoint_every=1", "tracking.wandb=offline"]
    alone = ["sft.enabled=false", "reward_model.enabled=false", f"reward=[{{function: '{work}/leaky.py:leaky'}}]"]
    whole = [f"reward=[{{model: reward_model}}, {{function: '{work}/leaky.py:leaky'}}]"]
    crash = ["--debug", "run", config, "run.name=crash", *sizes, *alone]
    done = [_rlhf(work, {"LEAKY_RAISES": "stage"}, *crash)]
    if not quick:
        done += [_rlhf(work, {}, "run", config, *sizes, *whole)]
        done += [_rlhf(work, {"LEAKY_RAISES": "everywhere"}, "check", config, *sizes, *alone)]
    error = json.loads((work / "runs/crash/ppo/stage.json").read_text()).get("error", "")
    logged = list((work / "runs/crash/ppo/wandb").glob("offline-run-*/*.wandb"))
    expected = [one.returncode for one in done] == [2, 0, 2][: len(done)]
    expected = expected and bool(logged) and "[redacted WANDB_API_KEY]" in error
    return "".join(one.stdout for one in done), expected


def _refusals(work: Path) -> tuple[int, str]:
    """How many of the configs with secrets are refused with their code, and all that was said of them."""
    config = work / "config.yaml"
    answers = []
    for number, (key, value) in enumerate(REFUSED.values()):
        override = f"{key}={value}" if value.startswith("[") else f"{key}='{value}'"
        more = [f"run.name=refused{number}", "prepare={script: none.py, creates: [none]}"]
        function = [f"reward=[{{function: '{work}/leaky.py:leaky'}}]"]
        answers.append(_rlhf(work, {}, "run", str(config), *function, *more, override).stdout)
    return sum("[CONF07]" in answer for answer in answers), "\n".join(answers)


def _rlhf(work: Path, more: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command with the planted environment; libraries' own folders are inside `work` too."""
    for name in ("home", "tmp"):
        (work / name).mkdir(exist_ok=True)
    places = {"HOME": str(work / "home"), "TMPDIR": str(work / "tmp"), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment = {**os.environ, **places, "HF_HUB_OFFLINE": "1", **ENVIRONMENT, **more}
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        timeout=DEADLINE,
    )


def _secret_of(value: str) -> str:
    """The part of a planted value that is secret."""
    part = value.rpartition("://user:")[2].partition("@")[0] if "://" in value else value
    return part.removeprefix("Bearer ").removeprefix("[--password, ").removesuffix("]")


def _written(work: Path) -> Iterator[Path]:
    """Everything that was written, the terminal included; not the config and the function that are ours."""
    ours = {work / "leaky.py", work / "config.yaml"}
    yield from (path for path in sorted(work.rglob("*")) if path.is_file() and path not in ours)


def _places(work: Path, secret: str) -> Iterator[str]:
    """Files that hold a secret, in any spelling in which it can be read."""
    spellings = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]}
    spellings |= {
        html.escape(secret),
        quote(secret),
        quote(secret, safe=""),
        base64.b64encode(secret.encode()).decode(),
    }
    spellings |= {line for line in secret.splitlines() if "planted" in line}
    wanted = [spelling.encode() for spelling in spellings]
    for path in _written(work):
        content = path.read_bytes()
        yield from (str(path.relative_to(work)) for spelling in wanted if spelling in content)


ROWS: dict[str, Row] = {
    "R35": Row(
        "planted secrets reach no file, no tracker and no terminal",
        "0 hits of 12 secrets in everything written",
        leaks,
    ),
}
