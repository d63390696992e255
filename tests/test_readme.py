"""Every command that README.md shows exists, with its options and its config."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from pipeline.cli import app
from pipeline.config_loading import load_config

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def commands() -> list[str]:
    """Lines of fenced shell blocks that call `rlhf` or a script, without prompt sign and comment."""
    blocks = re.findall(
        r"^```(?:bash|sh|console|shell)\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith(("rlhf ", "bash scripts/"))]


def check_rlhf(words: list[str]) -> None:
    root = get_command(app)
    options = {name for parameter in root.params for name in parameter.opts}
    while words[0].startswith("-"):
        assert words.pop(0) in options
    command = root.commands[words[0]]
    context = command.make_context(words[0], words[1:])  # refuses unknown options and missing arguments
    config = context.params.get("config")
    if config:
        check_config(str(config), context.params.get("overrides") or [])


def check_script(words: list[str]) -> None:
    assert (ROOT / words[0]).is_file(), f"no {words[0]}"
    configs = [word for word in words[1:] if word.endswith(".yaml")]
    overrides = [word for word in words[1:] if "=" in word and not word.startswith("-")]
    if words[0] == "scripts/run_rlhf.sh":
        check_config(*(configs or ["configs/imdb_smollm2.yaml"]), overrides)


def check_config(path: str, overrides: list[str]) -> None:
    """A config of the repository is loaded with the overrides shown; one of a run folder cannot be."""
    if path.startswith("configs/"):
        load_config(ROOT / path, overrides)


def test_the_readme_shows_commands():
    assert len(commands()) >= 2


@pytest.mark.parametrize("line", commands() if README.is_file() else [])
def test_a_command_of_the_readme_exists(line):
    words = shlex.split(line, comments=True)
    if words[0] == "rlhf":
        check_rlhf(words[1:])
    else:
        check_script(words[1:])
