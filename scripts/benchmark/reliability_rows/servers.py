"""Scoring servers that fail, while their client asks and while PPO trains: R22."""

import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from reward.base import RewardError
from reward.remote import RemoteScorer, Waiting
from reward.remote_config import RemoteConfig
from scripts.benchmark import tiny_files
from scripts.benchmark.killing import ENVIRONMENT, rlhf
from scripts.benchmark.scoreboard import Figure, Row
from scripts.benchmark.traces import metrics, rows
from tests.scoring_servers import Behaviour, Seen, serving
from tests.server_faults import AS_AGREED, AWAY, FAULTS, Fault

REMOTE = {"timeout_s": 2.0, "retries": 1, "backoff_s": 0.05, "max_wait_s": 0.5}
DEADLINE = RemoteConfig(url="http://127.0.0.1/", **REMOTE).longest_wait_s
"""Seconds after which one batch has been answered or given up."""
ALLOWED, ENDING = 2, 60
"""Seconds beyond it, on a busy machine: for the client, and for a training that also saves and ends its process."""
CONFIG = """\
run: {{name: {name}, root: {work}/runs}}
model: {{path: {work}/tiny/model}}
data:
  prompts: {{train: {work}/tiny/prompts.train.jsonl}}
sft: {{enabled: false}}
reward_model: {{enabled: false}}
reward: [{{remote: {{url: "{url}", {remote}}}}}]
ppo: {{steps: {steps}, rollout_batch_size: 8, minibatch_size: 4, microbatch_size: 4, ppo_epochs: 1, checkpoint_every: 1,
       max_prompt_tokens: 8, max_new_tokens: 8}}
"""
QUICK = ("another request", "NaN")
"""Faults that PPO meets in the test suite."""
LONG = ("slow head", "silence", "never final")
"""Faults that are left out there: one answer that takes too long is enough."""


@dataclass
class Found:
    """What the faults did."""

    bad: dict[str, str] = field(default_factory=dict)
    """What was not as promised, by the fault."""
    slowest: float = 0.0
    """Seconds from the first question that was not answered to the end."""


def measure(work: Path, quick: bool) -> Figure:
    """Every fault after an answer and before one: the client alone, then one training that meets them all in turn."""
    asked, trained = Found(), Found()
    faults = {name: fault for name, fault in FAULTS.items() if not quick or name not in LONG}
    met = {name: FAULTS[name] for name in QUICK} if quick else FAULTS
    for name, fault in faults.items():
        _ask(name, fault, asked)
    tiny_files.model(work / "tiny")
    wrong, scored = _train(work, met, trained)
    summary = (
        f"{len(faults) - len(asked.bad)}/{len(faults)} asked alone, "
        f"{len(met) - len(trained.bad)}/{len(met)} during PPO; "
        f"{wrong} wrong of {scored} rewards; given up after {asked.slowest:.1f} s at most (allowed {DEADLINE:g})"
    )
    detail = {"asked": vars(asked), "trained": vars(trained)}
    return Figure(summary, not asked.bad and not trained.bad and not wrong, detail)


def _ask(name: str, fault: Fault, found: Found) -> None:
    """The product's client: right scores before the fault, none and the reason in time, and right ones after it."""
    once_more = [fault.behaviour] if fault.passes else []
    with serving(fault.before, *_failing(fault), *once_more, AS_AGREED) as seen:
        scorer = RemoteScorer("remote", RemoteConfig(url=seen.address, **REMOTE), waiting=Waiting(tell=_silent))
        answered = [_scores(scorer)]
        begun = time.monotonic()
        answered.append(_scores(scorer))
        seconds = time.monotonic() - begun
        if fault is not AWAY:
            answered.append(_scores(scorer))
    found.slowest = max(found.slowest, seconds)
    right, refusal = [1.0, 2.0, 0.0], answered.pop(1)
    as_promised = {
        f"scores {answered}": all(scores == right for scores in answered),
        f"told {refusal}": getattr(refusal, "code", "") == fault.code and fault.told in str(refusal),
        f"took {seconds:.1f} s": seconds < DEADLINE + ALLOWED,
    }
    if not all(as_promised.values()):
        found.bad[name] = ", ".join(what for what, so in as_promised.items() if not so)


def _failing(fault: Fault) -> list[Behaviour]:
    """What the server does with one question and its repetitions."""
    return [fault.behaviour] * (REMOTE["retries"] + 1 if fault.passes else 1)


def _scores(scorer: RemoteScorer) -> list[float] | RewardError:
    try:
        return scorer(["a", "b", "c"], ["x", "yy", ""], {})
    except RewardError as error:
        return error


def _silent(line: str) -> None:
    """A retry is told to nobody here."""


def _train(work: Path, faults: dict[str, Fault], found: Found) -> tuple[int, int]:
    """Wrong rewards and all rewards of a training that every fault ends in turn, one iteration further each time.

    It counts as bad unless it has become, to the bit, what it is with a server that never fails.
    """
    steps, port = len(faults) + 1, 0
    with serving() as seen:
        whole = _rlhf(_config(work, "whole", seen, steps))
    for name, fault in faults.items():
        with serving(AS_AGREED, fault.before, *_failing(fault), port=port) as seen:  # first the check before a run asks
            port = int(seen.address.rpartition(":")[2].partition("/")[0])
            done = _rlhf(_config(work, "cut", seen, steps))
            _judge(name, fault, seen, done, found)
    with serving(port=port) as seen:
        last = _rlhf(_config(work, "cut", seen, steps))
    stages = [work / "runs" / name / "ppo" for name in ("whole", "cut")]
    if (whole.returncode, last.returncode) != (0, 0) or _result(stages[0]) != _result(stages[1]):
        codes = f"exit codes {whole.returncode} and {last.returncode}"
        found.bad["at the end"] = f"other results, {codes}: {last.stdout[-500:]}"
    samples = rows(stages[1] / "samples.jsonl")
    return sum(row["terms"]["remote"] != len(row["completion"]) for row in samples), len(samples)


def _judge(name: str, fault: Fault, seen: Seen, done: subprocess.CompletedProcess, found: Found) -> None:
    """Look at a training that met a fault in its second iteration."""
    seconds = time.monotonic() - seen.times[1 if fault is AWAY else 2]
    expected = {
        "the message": f"[{fault.code}] remote" in done.stdout and fault.told in done.stdout,
        f"exit code {fault.exit_code}": done.returncode == fault.exit_code,
        "no traceback": "Traceback" not in done.stdout,
        "the state was kept": "ppo: the state after step" in done.stdout or fault.code in ("REW01", "REW02"),
        f"an end after {seconds:.1f} s": seconds < DEADLINE + ENDING,
    }
    found.slowest = max(found.slowest, seconds)
    if not all(expected.values()):
        missing = ", ".join(what for what, so in expected.items() if not so)
        found.bad[name] = f"{missing}: {done.stdout[-500:]}"


def _config(work: Path, name: str, seen: Seen, steps: int) -> Path:
    remote = ", ".join(f"{key}: {value}" for key, value in REMOTE.items())
    file = work / f"{name}.yaml"
    file.write_text(CONFIG.format(name=name, work=work, url=seen.address, remote=remote, steps=steps))
    return file


def _rlhf(config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        rlhf("run", str(config)), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _result(stage: Path) -> tuple[str, list[dict], list[dict]]:
    """Digest of the trained policy, the logged numbers and the samples."""
    manifest = json.loads((stage / "stage.json").read_text())
    return manifest.get("final_hash", ""), metrics(stage), rows(stage / "samples.jsonl")


ROWS: dict[str, Row] = {
    "R22": Row(
        "a scoring server that fails, lies or stalls is told within the deadline, and no wrong reward is used",
        f"all of at least 10 faults, within the deadline + {ALLOWED} s; 0 wrong rewards; the same bits once it is back",
        measure,
    )
}
