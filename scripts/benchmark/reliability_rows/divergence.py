"""Numbers that are not finite: R19."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.rundir import RunDir
from scripts.benchmark.killing import REPOSITORY, run
from scripts.benchmark.scoreboard import Figure, Row

STEPS = 6
SMALL = (
    *("sft.checkpoint_every=1", "sft.log_every=4", "sft.batch_size=8", "sft.microbatch_size=4", "sft.samples=0"),
    *("reward_model.checkpoint_every=1", "reward_model.log_every=4"),
    *("reward_model.batch_size=8", "reward_model.microbatch_size=4"),
    *("ppo.checkpoint_every=1", "ppo.eval_prompts=8", "ppo.rollout_batch_size=16"),
    *("ppo.minibatch_size=8", "ppo.microbatch_size=8", "ppo.ppo_epochs=1"),
    *(f"{stage}.keep_checkpoints=9" for stage in ("sft", "reward_model", "ppo")),
    *(f"sft.max_steps={STEPS}", f"reward_model.max_steps={STEPS}", f"ppo.steps={STEPS}"),
    "reward=[{function: 'scripts.benchmark.spoilt_reward:length'}]",
    "check.reward_seconds=120",
)


def new_run(work: Path, name: str, *overrides: str) -> RunDir:
    """A run in which every stage starts from the base model."""
    from pipeline.config_loading import load_config
    from scripts.prepare_tiny import write

    data = work / "data"
    if not data.is_dir():
        write(data, 0)
    files = [
        f"data.{role}.{part}={data}/{role}.{part}.jsonl"
        for role in ("demonstrations", "preferences", "prompts")
        for part in ("train", "eval")
    ]
    alone = [f"{stage}.enabled=false" for stage in ("sft", "reward_model", "ppo") if stage != name.partition("-")[0]]
    paths = [f"run.root={work}", f"run.name={name}", f"model.path={data}/model", "prepare=null"]
    config = load_config(REPOSITORY / "configs/tiny.yaml", [*files, *alone, *paths, *SMALL, *overrides])
    return RunDir.create(config, ["scripts.benchmark.reliability"])


def play(folder: RunDir, stage: str, tensor: str, steps: tuple[int, ...], fresh: bool) -> int | None:
    """Exit code of the stage with bad numbers in some steps, in a process of its own when `fresh`."""
    from scripts.benchmark.injection import injected

    if fresh:
        program = [sys.executable, "-m", "scripts.benchmark.injection"]
        command = [*program, f"{stage}:{tensor}", ",".join(map(str, steps)), str(folder.path)]
        return run(command, folder.path / "output.txt", 300)
    from pipeline.stage_process import run_stage

    with injected(stage, tensor, steps):
        return run_stage(folder, stage)


def stops(work: Path, stage: str, tensor: str, step: int, fresh: bool) -> list[str]:
    """What is not as promised when `tensor` turns bad in `step` and the stage is to stop there."""
    folder = new_run(work, f"{stage}-{tensor.replace('/', '-').replace(' ', '-')}-{step}")
    code = play(folder, stage, tensor, (step,), fresh)
    left = folder.stage(stage)
    error = left.manifest.get("error", "")
    saved = sorted(int(path.name[5:]) for path in left.checkpoints.glob("step-*"))
    holds = {
        "exit code 4": code == 4,
        "step and tensor in the message": f"{stage} step {step}: {tensor} is not finite" in error
        or (tensor == "score" and "[REW02]" in error and f"in step {step};" in error),
        "the batch": _dumped(left.path / "diverged" / f"step-{step:06d}", tensor),
        "checkpoints up to the step before": saved == list(range(1, step)),
        "finite checkpoints": not list(_bad_tensors(left.checkpoints)),
        "no final": not left.final.exists(),
    }
    missing = [name for name, so in holds.items() if not so]
    if not missing:
        shutil.rmtree(folder.path)
    return missing


def _dumped(folder: Path, tensor: str) -> bool:
    from safetensors.torch import load_file

    tensors = load_file(folder / "batch.safetensors")
    told = json.loads((folder / "batch.json").read_text())
    whole = all(row.get("text", row.get("completion")) is not None for row in told["rows"]) and told["rows"]
    named = [t for name, t in tensors.items() if name.rpartition(".")[2] == tensor]
    bad = not named or not all(t.isfinite().all() for t in named)  # a gradient or a function's score is no tensor
    return told["tensor"] == tensor and bool(whole) and bad and any("ids" in name for name in tensors)


def _bad_tensors(checkpoints: Path) -> Iterator[str]:
    import torch
    from safetensors.torch import load_file

    from stages.divergence import named_tensors

    for file in checkpoints.rglob("*.safetensors"):
        yield from (f"{file}: {name}" for name, t in load_file(file).items() if not t.isfinite().all())
    for file in checkpoints.rglob("optimizer.pt"):
        state = torch.load(file, weights_only=True)["state"]
        yield from (f"{file}: {name}" for name, t in named_tensors(state) if not t.isfinite().all())


def goes_on(work: Path, stage: str, tensor: str, fresh: bool) -> list[str]:
    """What is not as promised when bad steps may be left out: the count, the same bits after a resume, the budget."""
    left_out = (f"{stage}.on_nonfinite=rollback", f"{stage}.max_skipped_batches=2")
    folder = new_run(work, f"{stage}-rollback", *left_out)
    holds = {"rollback ends well": play(folder, stage, tensor, (2, 3), fresh) == 0}
    left = folder.stage(stage)
    expected, rows = left.manifest.get("final_hash"), (left.path / "metrics.jsonl").read_text()
    holds["skipped in the metrics"] = f'"{stage}/skipped": 2' in rows
    holds["finite checkpoints"] = not list(_bad_tensors(left.checkpoints))
    for step in (4, 5, 6):
        shutil.rmtree(left.checkpoints / f"step-{step:06d}")
    left.write_manifest({**left.manifest, "status": "running"})
    holds["the same bits after a resume"] = (
        play(folder, stage, tensor, (2, 3), fresh) == 0 and left.manifest.get("final_hash") == expected
    )
    for step in (3, 4, 5, 6):
        shutil.rmtree(left.checkpoints / f"step-{step:06d}", ignore_errors=True)
    left.write_manifest({**left.manifest, "status": "running"})
    holds["a third bad step stops, those before a resume counted"] = play(folder, stage, tensor, (3, 4), fresh) == 4
    missing = [name for name, so in holds.items() if not so]
    if not missing:
        shutil.rmtree(folder.path)
    return missing


def measure(work: Path, quick: bool) -> Figure:
    """R19"""
    from scripts.benchmark.injection import SITES

    some = [("sft", "logprobs"), ("reward_model", "a gradient"), ("ppo", "score"), ("ppo", "values")]
    found: dict[str, list[str]] = {}
    for stage, tensor in some if quick else SITES:
        for step in (2,) if quick else range(1, 6):
            found[f"{stage} {tensor} in step {step}"] = stops(work, stage, tensor, step, not quick)
    skipping = {"ppo": "policy/grad_norm", "sft": "a gradient", "reward_model": "a gradient"}
    for stage in ("ppo",) if quick else skipping:
        found[f"{stage} rollback"] = goes_on(work, stage, skipping[stage], not quick)
    bad = {name: missing for name, missing in found.items() if missing}
    text = f"{len(bad)} bad of {len(found)}: found in their step, nothing saved, batch kept, exit code 4"
    return Figure(text, not bad, bad)


ROWS: dict[str, Row] = {
    "R19": Row(
        "a number that is not finite ends the stage in its step, or costs one batch; no checkpoint has one",
        "0 bad; 5 sites x 5 steps; 0 such tensors saved",
        measure,
    )
}
