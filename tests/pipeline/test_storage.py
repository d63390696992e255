"""What the estimate of room on the disk reads of a model."""

import os
import subprocess
import sys
from pathlib import Path

from scripts.benchmark import tiny_files


def test_a_pipe_in_place_of_weights_is_refused_and_not_waited_for(tmp_path: Path):
    model = tiny_files.model(tmp_path / "good")
    config = tiny_files.config(tmp_path / "config.yaml", model, tmp_path / "runs")
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")
    command = [sys.executable, "-m", "pipeline.cli", "check", str(config)]
    checked = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
    assert checked.returncode == 2
    assert "[SAFE03]" in checked.stderr
