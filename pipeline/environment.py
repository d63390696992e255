"""What this machine must have before anything is loaded: packages and their versions, W&B's key. Imports no torch."""

import configparser
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from pipeline.config import PipelineConfig
from pipeline.tracking import wandb_mode
from stages.base import InputError

_PACKAGE = "rlhf-pipeline"
_CHECKOUT = Path(__file__).resolve().parents[1] / "setup.cfg"
SHOWN = ("torch", "transformers", "trl", "peft")
"""Packages whose versions `rlhf check` prints."""


def environment_errors() -> list[InputError]:
    """DEP01: an installed package that is missing or outside the range that setup.cfg gives."""
    wanted = [r for r in map(Requirement, _requirements()) if r.marker is None or r.marker.evaluate({"extra": ""})]
    return [error for requirement in wanted if (error := _version_error(requirement))]


def four_bit_errors(config: PipelineConfig) -> Iterator[InputError]:
    """DEP02: four bits without the library for them."""
    if config.model.quantization == "4bit" and importlib.util.find_spec("bitsandbytes") is None:
        problem = "model.quantization: 4bit needs the package bitsandbytes, which is not installed"
        yield InputError("DEP02", problem, fix="pip install 'rlhf-pipeline[4bit]', or quantization: none")


def wandb_errors(config: PipelineConfig) -> Iterator[InputError]:
    """WB01: W&B is to be online, and there is neither a key nor a person who could give one."""
    if config.tracking.wandb == "online" and wandb_mode("auto") == "offline":
        problem = "tracking.wandb: online, but there is no API key (WANDB_API_KEY, ~/.netrc) and no terminal to ask at"
        yield InputError("WB01", problem, fix="`wandb login`, or set WANDB_API_KEY, or tracking.wandb=auto")


def wandb_note(config: PipelineConfig) -> str:
    """Where metrics will go beside metrics.jsonl."""
    if config.tracking.wandb == "auto" and wandb_mode("auto") == "offline":
        return "W&B without API key and terminal: logs offline; `wandb sync` sends it later"
    return f"W&B {config.tracking.wandb}"


def versions_line() -> str:
    """The packages that decide most, with their versions."""
    return ", ".join(f"{name} {_installed(name)}" for name in SHOWN)


def _requirements() -> list[str]:
    """The ranges of the installed package, or of the checkout that is run without being installed."""
    try:
        return importlib.metadata.requires(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        setup = configparser.ConfigParser()
        setup.read(_CHECKOUT, encoding="utf-8")
        return setup.get("options", "install_requires", fallback="").split("\n")[1:]


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _version_error(requirement: Requirement) -> InputError | None:
    found = _installed(requirement.name)
    if found != "none" and requirement.specifier.contains(found, prereleases=True):
        return None
    problem = f"package {requirement.name}: found {found}, expected {requirement.specifier or 'any version'}"
    return InputError("DEP01", problem, fix=f"pip install -c constraints.txt '{requirement}'")
