"""Kills at random instants: R1, R2."""

import os
import random
import select
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from pipeline.checkpoints import CheckpointManager
from scripts.benchmark.killing import Instants
from scripts.benchmark.scoreboard import Figure, Row
from scripts.benchmark.tiny_chain import STAGES, TinyChain

MEGABYTES = 3
"""Size of a checkpoint of the saver campaign."""
SAVES = 3
"""A saving process is killed within the time of so many saves."""


# The saver alone: a process that does nothing but save.


@dataclass
class SaverKills:
    """What a reader found after each kill of a saving process."""

    kills: int = 0
    bad: list[str] = field(default_factory=list)
    """Kills after which there was no complete checkpoint, or one with other content."""
    lost: list[str] = field(default_factory=list)
    """Kills after which the newest was older than a save that had returned, or than the newest before."""
    during_a_save: int = 0
    saves: int = 0
    seconds: float = 0.0


def kill_savers(folder: Path, kills: int, seed: int) -> SaverKills:
    """Kill processes that save in a tight loop, each going on from what the one before left."""
    campaign, instants, start = SaverKills(), random.Random(seed), time.monotonic()
    for newest in range(1, SAVES + 1):
        _save(folder, newest)
    longest = time.monotonic() - start
    for number in range(kills):
        leftovers = set(folder.glob(".*"))
        committed = _save_until_killed(folder, newest, instants.uniform(0, longest))
        campaign.during_a_save += bool(set(folder.glob(".*")) - leftovers)
        found = _manager(folder).latest()
        step = found[0] if found else 0
        if found and not _holds(found[1], step):
            campaign.bad.append(f"kill {number}: {found[1]} holds something else")
        if step < max(committed, newest):
            campaign.lost.append(f"kill {number}: newest is {step}, committed was {max(committed, newest)}")
        campaign.saves += step - newest
        newest = step
    campaign.kills, campaign.seconds = kills, time.monotonic() - start
    return campaign


def _manager(folder: Path) -> CheckpointManager:
    return CheckpointManager(folder, keep=2, tell=lambda line: None)


def _save(folder: Path, step: int) -> None:
    _manager(folder).save(step, lambda aside: _write(aside, step))


def _save_until_killed(folder: Path, newest: int, seconds: float) -> int:
    """The last step whose save had returned when a forked process was killed; 0 when none had."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for step in _endlessly(newest):
                _save(folder, step)
                os.write(writing, step.to_bytes(8, "big"))
        finally:
            os._exit(1)
    os.close(writing)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the saver ended by itself: {status}"
    told = b""
    while select.select([reading], [], [], 0)[0] and (part := os.read(reading, 1 << 16)):
        told += part
    os.close(reading)
    return int.from_bytes(told[-8:], "big")


def _endlessly(newest: int) -> Iterator[int]:
    while True:
        newest += 1
        yield newest


def _write(folder: Path, step: int) -> None:
    """A checkpoint like PPO's: one large file, some small ones, a folder."""
    (folder / "state.safetensors").write_bytes(_content(step))
    (folder / "state.json").write_text(f'{{"finished": {step}}}')
    (folder / "best").mkdir()
    (folder / "best" / "config.json").write_text(str(step))


def _holds(folder: Path, step: int) -> bool:
    whole = (folder / "state.safetensors").read_bytes() == _content(step)
    return whole and (folder / "best" / "config.json").read_text() == str(step)


def _content(step: int) -> bytes:
    """Bytes that no other step has."""
    return step.to_bytes(8, "big") + np.random.Generator(np.random.Philox(step)).bytes(MEGABYTES << 20)


# The real command.


@dataclass
class RunKills:
    """What became of runs that were killed and started again."""

    kills: int = 0
    after_a_checkpoint: int = 0
    runs: int = 0
    bad: list[str] = field(default_factory=list)
    seconds: float = 0.0


def kill_runs(chain: TinyChain, stage: str, kills: int, seed: int) -> RunKills:
    """Kill `rlhf run` inside a stage at uniform instants, up to three times a run, then let it finish."""
    campaign, instants, start = RunKills(), Instants(f"{seed} {stage}", chain.seconds[stage]), time.monotonic()
    while campaign.kills < kills:
        run = chain.copy(f"{stage}-{campaign.runs}", before=stage)
        campaign.runs += 1
        for earlier in range(min(3, kills - campaign.kills)):
            code = run.play(stage, kill_after=instants.draw())
            if code is not None:
                campaign.bad += [f"{run.root}: exit code {code} before its kill"] if code else []
                if not earlier:
                    instants.came_too_late()
                break
            campaign.kills += 1
            campaign.after_a_checkpoint += run.checkpoints(stage) > 0
        bad = run.finish(stage)
        campaign.bad += bad
        if not bad:
            shutil.rmtree(run.root)
    campaign.seconds = time.monotonic() - start
    return campaign


def anywhere(work: Path, quick: bool) -> Figure:
    """R1"""
    saver = kill_savers(work / "saver", 20 if quick else 300, seed=1)
    stages = STAGES[:1] if quick else STAGES
    chain = TinyChain(work, stages)
    runs = {stage: kill_runs(chain, stage, 1 if quick else 20, seed=1) for stage in stages}
    kills, bad = sum(r.kills for r in runs.values()), sum(len(r.bad) for r in runs.values())
    inside = sum(r.after_a_checkpoint for r in runs.values())
    seconds = saver.seconds + sum(r.seconds for r in runs.values())
    found = (
        f"{len(saver.bad)} bad / {saver.kills} saver-level ({saver.during_a_save} inside a save), "
        f"{bad} / {kills} through the CLI ({inside} after a first checkpoint); {seconds:.0f} s"
    )
    detail = {"saver": asdict(saver), **{stage: asdict(campaign) for stage, campaign in runs.items()}}
    return Figure(found, not saver.bad and not bad, detail)


def progress(work: Path, quick: bool) -> Figure:
    """R2"""
    saver = kill_savers(work / "saver", 20 if quick else 300, seed=2)
    found = f"{len(saver.lost)} lost or gone back in {saver.kills} kills over {saver.saves} saves"
    return Figure(found, not saver.lost and not saver.bad, asdict(saver))


ROWS = {
    "R1": Row(
        "SIGKILL at any instant: the same command goes on to the same bits",
        "0 bad / 300 saver-level, 0 / 60 through the CLI (20 per stage)",
        anywhere,
    ),
    "R2": Row("no committed progress is lost", "0 steps beyond the last save that returned, 0 regressions", progress),
}
