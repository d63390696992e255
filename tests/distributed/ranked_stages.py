"""SFT and reward model as real processes: `train` starts the ranks once and lets them go through a list of cases."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ENDS = (" good.", " bad!", " fine, so fine.", " a long one it was")
DEMONSTRATIONS = [
    {"prompt": f"{a} {n}", "completion": end} for a in ("film", "book", "cast") for n in "ab" for end in ENDS
]
PREFERENCES = [
    {"prompt": f"{a} {n}", "chosen": ENDS[i], "rejected": ENDS[i - 1]}
    for a in ("film", "book", "cast")
    for n in "ab"
    for i in range(4)
]
ROWS = {"sft": DEMONSTRATIONS, "reward_model": PREFERENCES}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "lora": {"method": "lora", "r": 4, "alpha": 8, "targets": "all-linear"},
    "adapter": {"method": "adapter"},
    "prefix_tuning": {"method": "prefix_tuning", "virtual_tokens": 4},
}


def train(ranks: int, cases: Sequence[Mapping[str, Any]], folder: Path, timeout_s: float = 300.0) -> list[dict]:
    """What rank 0 found of each case: its log, its headline, what the ranks printed.

    A case has `stage`, `folder`, `base`, and perhaps `deepspeed`, `config`, `stop_after` (a step), `spoil_step` (in
    which the last rank's outputs are not finite), and
    `checkpoints_of` with `from_step`: another case's folder, from whose checkpoint it goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(list(cases)))
    launcher = ["torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", str(_free_port()), "-m"]
    command = [*(launcher if ranks > 1 else []), "tests.distributed.ranked_stages", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environment, cwd=folder, capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, done.stderr[: done.stderr.find("torch/distributed/run.py")][-6000:]
    return json.loads((folder / "results.json").read_text())


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _main(folder: Path) -> None:
    """One rank."""
    from stages.world import World

    world = World.from_environment(60.0)
    world.join()
    found = []
    for case in json.loads((folder / "cases.json").read_text()):
        found.append(_run(case, world))
        world.barrier()
    if world.main:
        (folder / "results.json").write_text(json.dumps(found))


def _run(case: Mapping[str, Any], world: Any) -> dict[str, Any]:
    import io
    from contextlib import redirect_stdout

    from stages.base import Diverged, InputError
    from stages.stopping import Interrupted

    if "checkpoints_of" in case and world.main:
        name = f"checkpoints/step-{case['from_step']:06d}"
        shutil.copytree(Path(case["checkpoints_of"]) / name, Path(case["folder"]) / name)
    world.barrier()
    context = _context(Path(case["folder"]), world, case.get("stop_after"))
    ended, headline, printed = None, {}, io.StringIO()
    try:
        with redirect_stdout(printed), _spoiling(case.get("spoil_step"), world):
            headline = dict(_stage(case, context).headline)
    except (Interrupted, Diverged, InputError) as error:
        ended = f"{type(error).__name__}: {error}"
    return {"log": context.tracker.metrics, "headline": headline, "ended": ended, "printed": printed.getvalue()}


@contextmanager
def _spoiling(step: int | None, world: Any) -> Iterator[None]:
    """Inside, the last rank's first output of a training step is not finite."""
    from stages.finite_steps import FiniteSteps

    remember, begin = FiniteSteps._remember, FiniteSteps.on_step_begin
    bad = False

    def beginning(self: FiniteSteps, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        nonlocal bad
        bad = state.global_step + 1 == step and world.rank == world.size - 1
        begin(self, args, state, *rest, **kwargs)

    def spoiled(self: FiniteSteps, model: Any, args: Any, kwargs: Any, output: Any) -> None:
        if bad and model.training:
            output.log_probs.data.fill_(float("nan"))
        remember(self, model, args, kwargs, output)

    FiniteSteps._remember, FiniteSteps.on_step_begin = spoiled, beginning
    try:
        yield
    finally:
        FiniteSteps._remember, FiniteSteps.on_step_begin = remember, begin


def _context(folder: Path, world: Any, stop_after: int | None) -> Any:
    from pipeline.shared_checkpoints import SharedCheckpoints
    from stages.stopping import StopRequest
    from tests.toy_models import MemoryTracker, context

    class Stopping(MemoryTracker):
        """Asks, on the last rank alone, to stop while a step is logged."""

        def log(self, metrics: Mapping[str, float], step: int) -> None:
            super().log(metrics, step)
            if step == stop_after and world.rank == world.size - 1:
                stop.signal = signal.SIGTERM

    stop = StopRequest(everywhere=world.largest)
    services = context(folder)
    store = services.checkpoints if world.alone else SharedCheckpoints(services.checkpoints, world)
    return replace(services, tracker=Stopping(), checkpoints=store, stop=stop, world=world)


def _stage(case: Mapping[str, Any], context: Any) -> Any:
    from stages.deepspeed_config import DeepSpeedConfig
    from stages.models.config import ModelConfig
    from stages.reward_model.config import RewardModelConfig
    from stages.sft.config import SFTConfig
    from tests.toy_models import write_rows

    settings = {"batch_size": 8, "microbatch_size": 2, "max_length": 48, "log_every": 1, "checkpoint_every": 0}
    settings |= {"learning_rate": 1e-2, "lr_schedule": "linear", **case.get("config", {})}
    deepspeed = None if case.get("deepspeed") is None else DeepSpeedConfig(**case["deepspeed"])
    rows = ROWS[case["stage"]]
    train = write_rows(context.folder / f"rows-{context.world.rank}.jsonl", rows[:-5])
    held_out = write_rows(context.folder / f"eval-{context.world.rank}.jsonl", rows[-5:])
    model = ModelConfig(path=case["base"], **case.get("model", {}))
    if case["stage"] == "sft":
        from stages.sft.stage import run_sft

        config = SFTConfig(**{"samples": 1, "sample_tokens": 4, **settings})
        return run_sft(config, model, train, held_out, context, deepspeed=deepspeed)
    from stages.reward_model.stage import run_reward_model

    config = RewardModelConfig(**settings)
    return run_reward_model(config, model, train, held_out, None, context, DEMONSTRATIONS[:3], deepspeed=deepspeed)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
