"""Which variables reach the ranks, and which the launcher may see. Imports no torch."""

import re
from collections.abc import Mapping

from pipeline.config import PipelineConfig
from pipeline.launch_config import LaunchConfig
from stages.redaction import secrets_of

_PASSED = re.compile(
    r"(?:HF|HUGGINGFACE|TRANSFORMERS|TOKENIZERS|WANDB|NCCL|GLOO|TORCH|TORCHINDUCTOR|TRITON|OMP|MKL|PYTHON|RLHF)_\w+"
    r"|PYTHON[A-Z]+|DS_ACCELERATOR|PATH|LD_LIBRARY_PATH|LANG|LC_\w+|(?:https?|no|all|ftp)_proxy",
    re.IGNORECASE,
)
_NOT_PASSED = {"RLHF_PARENT"}
_OUR_OWN = "RLHF_"
_SPEAKS_ON_COMMAND_LINES = "MLFLOW"
"""Variables that begin like this are put on command lines by DeepSpeed's launchers."""


def passed_variables(environment: Mapping[str, str], launch: LaunchConfig) -> dict[str, str]:
    """Those variables that ranks on other hosts get."""
    names = {name for name in environment if _PASSED.fullmatch(name)} | set(launch.pass_environment)
    known = {name: environment[name] for name in sorted(names - _NOT_PASSED) if name in environment}
    return {**known, **launch.environment}


def with_tokens(config: PipelineConfig) -> LaunchConfig:
    """The launch section, whose ranks also get the tokens of the scoring servers that the reward names."""
    names = [term.remote.token_env for term in config.reward if term.remote and term.remote.token_env]
    return config.launch.model_copy(update={"pass_environment": [*config.launch.pass_environment, *names]})


def launcher_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a launcher may see: nothing secret, since launchers copy variables to command lines."""
    hidden = secrets_of(environment).keys()
    return {k: v for k, v in environment.items() if k not in hidden and not k.startswith(_SPEAKS_ON_COMMAND_LINES)}


def told_names(environment: Mapping[str, str], launch: LaunchConfig) -> str:
    """The line that says which variables are passed; their values are never printed."""
    names = [name for name in passed_variables(environment, launch) if not name.startswith(_OUR_OWN)]
    return f"environment of the ranks: {', '.join(names) or 'nothing'}"
