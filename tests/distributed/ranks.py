"""Runs one stage of several run folders, one after another, on two ranks; and what the tests do with such folders."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

RANKS = 2
LONGEST = 600
"""Seconds for all cases of one launch."""


def on_two_ranks(stage: str, runs: Sequence[Path], log: Path) -> dict[str, int]:
    """Exit code of rank 0 by the name of the folder that a run lies in; all cases share two processes."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(RANKS), "--master_port", _free_port()),
        *("--module", "tests.distributed.ranks", stage, *map(str, runs)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": os.getcwd()}
    with log.open("w") as output:
        subprocess.run(command, stdout=output, stderr=output, env=environment, timeout=LONGEST, check=False)
    told = [line.split() for line in log.read_text().splitlines() if line.startswith("CASE ")]
    return {name: int(code) for _, name, code in told}


def interrupted(run: Path, copy: Path, stage: str, at: int) -> Path:
    """A copy of a finished run as if its stage had been killed after step `at`."""
    shutil.copytree(run, copy / run.name)
    folder = copy / run.name / stage
    shutil.rmtree(folder / "final")
    for checkpoint in (folder / "checkpoints").iterdir():
        if int(checkpoint.name.partition("-")[2]) > at:
            shutil.rmtree(checkpoint)
    manifest = folder / "stage.json"
    manifest.write_text(manifest.read_text().replace('"finished"', '"failed"', 1))
    return copy / run.name


def _free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def main(stage: str, runs: Sequence[str]) -> None:
    """One rank: every case in turn."""
    from pipeline.rundir import RunDir
    from pipeline.stage_process import run_stage

    said = os.dup(1)  # the stage silences every rank but the first
    for run in runs:
        code = run_stage(RunDir.open(Path(run)), stage)
        if os.environ["RANK"] == "0":
            os.write(said, f"CASE {Path(run).parent.name} {code}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
