"""The same bits after a resume: R7 to R11, R29."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from scripts.benchmark.exact_chain import FULL, PACKED, WITH_LORA, ExactChain, Variant
from scripts.benchmark.killing import Instants
from scripts.benchmark.scoreboard import Figure, Row
from scripts.benchmark.tiny_chain import TinyChain
from scripts.benchmark.traces import differences, rows, trace

# R7 to R9


def every_step(stage: str, variants: tuple[Variant, ...]) -> Callable[[Path, bool], Figure]:
    """Measures a stage resumed from each step, 0 and the last included; quick: the first variant, in the middle."""

    def measure(work: Path, quick: bool) -> Figure:
        start, found = time.monotonic(), {}
        for variant in variants[:1] if quick else variants:
            chain = ExactChain(work / variant.name, variant, stage, fresh=not quick)
            for step in (chain.steps - 2,) if quick else range(chain.steps + 1):
                found[f"{variant.name}, step {step}"] = chain.resumed(step)
        equal = sum(not differing for differing in found.values())
        seconds = time.monotonic() - start
        names = ", ".join(v.name for v in variants)
        return Figure(f"{equal} of {len(found)} equal ({names}); {seconds:.0f} s", equal == len(found), found)

    return measure


# R10

FILES = {
    "sft": ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "adapter_model.safetensors"),
    "reward_model": ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors"),
}
TRACKED = Variant("tracked", tracking={"wandb": "offline"})


def controls(work: Path, quick: bool) -> Figure:
    """R10: each component in turn is left out; what PPO could not start without is as old as its first step."""
    found: dict[str, list[str]] = {}
    for stage, variant in (("sft", WITH_LORA), ("reward_model", FULL)):
        chain = ExactChain(work / stage, variant, stage, fresh=False)
        for file in FILES[stage][1:3] if quick else FILES[stage]:
            found[f"{stage}: {file}"] = chain.resumed(4, lambda folder, file=file: (folder / file).unlink())
    if not quick:
        chain = ExactChain(work / "ppo", TRACKED, "ppo", fresh=False)
        assert not chain.resumed(3), "the comparison fails with nothing left out"
        for component, change in _ppo_changes(chain).items():
            found[f"ppo: {component}"] = chain.resumed(3, change)
    detected = sum(bool(differing) for differing in found.values())
    return Figure(f"{detected} of {len(found)} components detected", detected == len(found), found)


def _ppo_changes(chain: ExactChain) -> dict[str, Callable[[Path], None]]:
    """What takes each part of PPO's state away, by its name."""
    from stages.ppo.held_out import Best
    from stages.ppo.state import load_state, save_state

    forgotten = {"best": asdict(Best()), "evaluated": chain.steps}  # an older `evaluated` costs a repetition, no bit
    first = load_state(chain.whole / "checkpoints" / "step-000001") | forgotten
    first.pop("health")  # a run without alarms computes the same whatever it remembers of them
    inside = [(role, part) for role in ("policy", "value") for part in first[role]]

    def age(folder: Path, path: tuple[str, ...]) -> None:
        state = node = load_state(folder)
        value: Any = first
        for key in path[:-1]:
            node, value = node[key], value[key]
        node[path[-1]] = value[path[-1]]
        save_state(folder, state)

    paths = [*((name,) for name in first if name not in ("policy", "value")), *inside]
    return {
        **{"/".join(path): partial(age, path=path) for path in paths},
        "the best policy's folder": lambda folder: shutil.rmtree(folder / "best"),
        "id of the W&B run": lambda folder: (chain.folder / "wandb.json").unlink(),
    }


# R11


def episodes(work: Path, quick: bool) -> Figure:
    """R11"""
    chain = ExactChain(work / "chain", FULL, "ppo")
    expected = Counter(row["episode"] for row in rows(chain.whole / "samples.jsonl"))
    instants, kills, bad = Instants("R11", chain.seconds), 0, {}
    repeated = missed = 0
    schedules = 1 if quick else 50
    start = time.monotonic()
    for number in range(schedules):
        for earlier in range(1 + number % 3):
            code = chain.play("ppo", kill_after=instants.draw())
            if code is not None:
                if not earlier:
                    instants.came_too_late()
                break
            kills += 1
        code = code or chain.play("ppo")
        found = Counter(row["episode"] for row in rows(chain.folder / "samples.jsonl"))
        repeated += (found - expected).total()
        missed += (expected - found).total()
        other = differences(trace(chain.folder), chain.expected) if code == 0 else [f"exit code {code}"]
        if other:
            bad[number] = other
        shutil.rmtree(chain.folder)
    seconds = time.monotonic() - start
    text = (
        f"{repeated} repeated, {missed} missed of {expected.total()} episodes in {schedules} schedules, {kills} kills"
    )
    return Figure(f"{text}; {seconds:.0f} s", not (repeated or missed or bad), {"bad": bad})


# R29


def whole_chain(work: Path, quick: bool) -> Figure:
    """R29"""
    chain = TinyChain(work)
    instants, kills, runs, bad = Instants("R29", sum(chain.seconds.values())), 0, 0, []
    wanted = 1 if quick else 30
    stages: Counter[str] = Counter()
    start = time.monotonic()
    while kills < wanted:
        run = chain.copy(f"chain-{runs}")
        runs += 1
        marks: Mapping[str, Any] = {}
        for earlier in range(min(3, wanted - kills)):
            code = run.play(kill_after=instants.draw())
            if code is not None:
                bad += [f"{run.root}: exit code {code} before its kill"] if code else []
                if not earlier:
                    instants.came_too_late()
                break
            kills += 1
            now = run.finished()
            bad += [f"{run.root}: {name} was finished and is touched" for name in marks if marks[name] != now.get(name)]
            stages[f"after {len(now)} stages"] += 1
            marks = now
        bad += run.finish()
        if not bad:
            shutil.rmtree(run.root)
    seconds = time.monotonic() - start
    detail = {"bad": bad, "kills by finished stages": dict(stages), "runs": runs}
    return Figure(f"{len(bad)} bad in {kills} kills of {runs} chains; {seconds:.0f} s", not bad, detail)


ROWS = {
    "R7": Row("SFT resumes to the same bits", "100 % of steps", every_step("sft", (WITH_LORA, FULL, PACKED))),
    "R8": Row("so does the reward model", "100 % of steps", every_step("reward_model", (FULL, WITH_LORA))),
    "R9": Row(
        "so does PPO, with every option that has a state", "100 % of steps", every_step("ppo", (FULL, WITH_LORA))
    ),
    "R10": Row("and each saved component is needed for it", "n / n components", controls),
    "R11": Row(
        "PPO sees every episode once under random kills", "0 repeated, 0 missed / 50 schedules", episodes, False
    ),
    "R29": Row(
        "the chain killed anywhere goes on at the right stage", "0 repeats, hashes equal, 30 kills", whole_chain, False
    ),
}
