"""Which variables reach the ranks, which the launcher sees, and who can read the file that carries them."""

import stat
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.job_file import JobFile, new_key, private_folder, write_private
from pipeline.launch_config import LaunchConfig
from pipeline.worker_environment import launcher_environment, passed_variables, told_names

HERE = {
    **{"HF_TOKEN": "hf_secret", "WANDB_API_KEY": "0123456789ab", "NCCL_DEBUG": "INFO", "GLOO_SOCKET_IFNAME": "eth0"},
    **{"TORCH_LOGS": "dist", "OMP_NUM_THREADS": "1", "https_proxy": "http://me:password1@proxy", "NO_PROXY": "local"},
    **{"PYTHONPATH": "/code", "PATH": "/venv/bin:/bin", "DS_ACCELERATOR": "cpu", "RLHF_DEBUG": "1"},
    **{"RLHF_PARENT": "17", "HOME": "/root", "CUDA_VISIBLE_DEVICES": "0", "AWS_SECRET_ACCESS_KEY": "verysecret"},
    **{"MLFLOW_TRACKING_URI": "x", "SSH_AUTH_SOCK": "/tmp/agent"},
}


def test_the_ranks_get_what_libraries_read_and_nothing_else():
    assert sorted(passed_variables(HERE, LaunchConfig())) == [
        *("DS_ACCELERATOR", "GLOO_SOCKET_IFNAME", "HF_TOKEN", "NCCL_DEBUG", "NO_PROXY", "OMP_NUM_THREADS", "PATH"),
        *("PYTHONPATH", "RLHF_DEBUG", "TORCH_LOGS", "WANDB_API_KEY", "https_proxy"),
    ]


def test_the_config_adds_values_and_names():
    launch = LaunchConfig(environment={"NCCL_DEBUG": "WARN"}, pass_environment=["AWS_SECRET_ACCESS_KEY", "ABSENT"])
    passed = passed_variables(HERE, launch)
    assert (passed["NCCL_DEBUG"], passed["AWS_SECRET_ACCESS_KEY"]) == ("WARN", "verysecret")
    assert "ABSENT" not in passed


def test_values_are_never_printed_and_never_in_the_launchers_environment():
    told = told_names(HERE, LaunchConfig())
    assert told.startswith("environment of the ranks: DS_ACCELERATOR, GLOO_SOCKET_IFNAME, HF_TOKEN, ")
    seen = launcher_environment(HERE)
    for secret in ("hf_secret", "0123456789ab", "password1", "verysecret"):
        assert secret not in told
        assert secret not in str(seen)
    assert (seen["HOME"], seen["SSH_AUTH_SOCK"], seen["CUDA_VISIBLE_DEVICES"]) == ("/root", "/tmp/agent", "0")
    assert "MLFLOW_TRACKING_URI" not in seen  # DeepSpeed writes it on command lines


def test_a_name_with_a_value_is_refused_where_names_are_asked_for():
    with pytest.raises(ValidationError, match="expected names of variables, without values"):
        LaunchConfig(pass_environment=["TOKEN=abc"])


def test_the_file_is_its_owners_alone_and_goes_with_the_stage(tmp_path: Path):
    job = JobFile(["true"], "/", {"HF_TOKEN": "hf_secret"}, ("127.0.0.1", 1), new_key(), 60.0, 30.0)
    with private_folder(tmp_path) as folder:
        file = folder / "sft.json"
        write_private(file, job)
        assert (stat.S_IMODE(folder.stat().st_mode), stat.S_IMODE(file.stat().st_mode)) == (0o700, 0o600)
        assert JobFile.read(file) == job
        assert JobFile.read(file).digest == job.digest
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"command": []}'])
def test_a_damaged_file_is_no_job(tmp_path: Path, content: str):
    file = tmp_path / "sft.json"
    file.write_text(content)
    with pytest.raises(ValueError):
        JobFile.read(file)
