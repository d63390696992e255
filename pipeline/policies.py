"""Which model a folder stands for: a stage of a run, or the folder itself. Imports no torch."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config import NAME, STAGES
from pipeline.launch import continue_command, printable, rlhf
from pipeline.rundir import RunDir
from stages.base import InputError

LATEST_FIRST = ("ppo", "sft")
"""The stages that leave a policy."""
TAKEN = ("base", "default")
"""Names that `rlhf chat` gives by itself."""


def final_of(folder: Path, stage: str | None = None) -> Path:
    """The model of a run's stage, of its last finished policy if no stage is named; a model's folder is itself.

    Raises:
        InputError: PATH01 neither a run nor a model; RUN03 no such stage; RUN04 the stage is not finished, or a stage
            is named though the folder is a model.
    """
    if stage is not None and stage not in STAGES:
        raise InputError("RUN03", f"no stage '{stage}'; found {', '.join(STAGES)}", fix="name one of these")
    if is_model(folder):
        if stage is not None:
            raise InputError("RUN04", f"{folder} is a model, it has no stages", fix="leave out --stage, or give a run")
        return folder
    run = RunDir(folder)
    if not run.config_file.is_file():
        problem = f"{folder} is neither a run (config.yaml) nor a model (config.json or adapter_config.json)"
        raise InputError("PATH01", problem, fix="give runs/<name>, or the final/ folder of a stage")
    return _final_of_run(run, stage)


def is_model(path: Path) -> bool:
    """Whether a path holds weights or an adapter: a folder with its config, or a GGUF file."""
    return path.suffix == ".gguf" or any((path / name).exists() for name in ("config.json", "adapter_config.json"))


def _final_of_run(run: RunDir, stage: str | None) -> Path:
    wanted = LATEST_FIRST if stage is None else (stage,)
    finished = next((run.stage(name) for name in wanted if run.stage(name).finished), None)
    if finished is not None:
        return finished.final
    found = ", ".join(f"{name} {run.stage(name).manifest.get('status', 'not started')}" for name in wanted)
    command = continue_command(run.config_file, stage) if stage else rlhf("run", str(run.config_file))
    problem = f"{run.path} has no finished {' or '.join(wanted)}; found {found}"
    raise InputError("RUN04", problem, fix=f"make it: {printable(command)}")


def named_adapters(arguments: Sequence[str]) -> Mapping[str, Path]:
    """Folders by name from `name=path`; a path may be a run, whose last finished policy is meant.

    Raises:
        InputError: CHAT01 not `name=path`, or a name that is given twice or taken; and those of `final_of`.
    """
    named: dict[str, Path] = {}
    for argument in arguments:
        name, _, path = argument.partition("=")
        if not path or not re.fullmatch(NAME, name):
            example = "write it as --adapter style=runs/style/sft/final"
            raise InputError("CHAT01", f"--adapter {argument!r} is not name=path", fix=example)
        if name in named or name in TAKEN:
            why = "given twice" if name in named else "taken"
            raise InputError("CHAT01", f"--adapter {argument!r}: name '{name}' is {why}", fix="give it another name")
        named[name] = final_of(Path(path))
    return named
