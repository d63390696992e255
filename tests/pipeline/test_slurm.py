"""The file for sbatch, and what the runner does with it in and outside an allocation."""

import subprocess
from pathlib import Path

from pipeline.config_loading import load_config
from pipeline.rundir import RunDir
from pipeline.slurm import sbatch_text
from pipeline.starting import for_slurm, leave_for_slurm

SLURM = ("launch.launcher=slurm", "launch.ranks=8", "launch.slurm.nodes=2")
SECTION = """
launch:
  launcher: slurm
  ranks: 8
  slurm: {nodes: 2, time: "24:00:00", partition: gpu, options: [--gres=gpu:8], setup: [module load x]}
"""


def test_the_file_asks_for_what_the_config_says_and_runs_the_command(workplace: Path):
    Path("config.yaml").write_text(Path("config.yaml").read_text() + SECTION)
    text = sbatch_text(load_config("config.yaml"), Path("runs/small"), ["rlhf", "run", "a b.yaml"])
    assert text.splitlines() == [
        "#!/bin/bash",
        "#SBATCH --job-name=rlhf-small",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --time=24:00:00",
        "#SBATCH --partition=gpu",
        f"#SBATCH --output={workplace}/runs/small/slurm-%j.txt",
        "#SBATCH --signal=B:TERM@120",
        "#SBATCH --gres=gpu:8",
        "set -e",
        f"cd {workplace}",
        "module load x",
        "exec rlhf run 'a b.yaml'",
    ]
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


def test_the_run_waits_for_nodes_outside_an_allocation_alone(workplace: Path, monkeypatch):
    config = load_config("config.yaml", SLURM)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert for_slurm(config)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert not for_slurm(config)
    assert not for_slurm(load_config("config.yaml"))


def test_the_file_is_left_in_the_runs_folder_with_the_options_of_the_run(workplace: Path):
    config = load_config("config.yaml", SLURM)
    told = leave_for_slurm(config, RunDir.of(config), ["--from", "ppo"])
    assert told == "Slurm starts this run with:\n    sbatch runs/small/slurm.sbatch"
    last = Path("runs/small/slurm.sbatch").read_text().splitlines()[-1]
    assert last.endswith(" -m pipeline.cli run runs/small/config.yaml --from ppo")
