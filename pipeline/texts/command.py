"""The command `rlhf data`. Imports no torch until the config and its models have been looked through."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pipeline.config import STAGES, PipelineConfig
from pipeline.model_files import require_safe_models
from pipeline.preflight import unprepared
from pipeline.texts.gate import has_tokenizer
from stages.base import InputError


@dataclass(frozen=True)
class Wanted:
    """What is to be shown, and how."""

    stage: str | None
    """None = all that are enabled."""
    rows: int
    """Of each training file."""
    html: Path | None
    """Page that is written; None = in the terminal."""
    ids: bool


def show_data(config: PipelineConfig, wanted: Wanted, console: Console) -> None:
    """Show rows of the enabled stages, or of one, in the terminal or as a page.

    Raises InputError RUN03 (no such stage), PATH01 (files or tokenizer are not there yet), and those of the data.
    """
    stages = _stages(config, wanted.stage)
    missing = unprepared(config)
    if missing:
        problem = f"{', '.join(missing)}: not made yet"
        raise InputError("PATH01", problem, fix=f"python {config.prepare.script} {' '.join(config.prepare.arguments)}")
    require_safe_models(config)
    if not has_tokenizer(config.model.path):
        problem = f"no tokenizer of model.path '{config.model.path}' on this machine"
        raise InputError("PATH01", problem, fix="correct model.path, or download that model first")

    from pipeline.texts.view import data_view

    views = data_view(config, stages, wanted.rows)
    if wanted.html is None:
        from pipeline.texts.terminal import show

        show(views, console, wanted.ids)
        return
    from pipeline.texts.page import write_page

    write_page(views, config.run.name, wanted.html, wanted.ids)
    console.print(f"Data: {wanted.html}", highlight=False, markup=False, soft_wrap=True)


def _stages(config: PipelineConfig, only: str | None) -> list[str]:
    enabled = [stage for stage in STAGES if getattr(config, stage).enabled]
    if only is not None and only not in enabled:
        problem = f"--stage {only}: no such stage in this config; found {', '.join(enabled)}"
        raise InputError("RUN03", problem, fix="name one of these")
    return enabled if only is None else [only]
