"""The command `rlhf`. Imports no torch: what needs it imports it when called."""

import json
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from pipeline import batch_plan, ckpt, model_commands, preflight, serve_reward
from pipeline.config import STAGES, PipelineConfig
from pipeline.config_loading import config_schema, read_config
from pipeline.evaluating import evaluate
from pipeline.locks import stage_lock
from pipeline.node_check import check_nodes
from pipeline.problems import exit_code, raise_together
from pipeline.rundir import STEPS, RunDir
from pipeline.runner import conclude, run_chain
from pipeline.selection import Selection
from pipeline.starting import start_lines
from pipeline.storage import bytes_needed, full_error, is_full
from stages.base import InputError
from stages.redaction import redactor
from stages.world import World

app = typer.Typer(
    name="rlhf",
    help="SFT, reward model and PPO as one resumable chain.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(ckpt.app, name="ckpt")
app.command(name="serve-reward")(serve_reward.serve_reward)
console = Console()

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of a run.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides such as ppo.kl_coef=0.1.")
]
Allowed = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="FIELD", help="Go on from a checkpoint although this changed; may be repeated."),
]
Nodes = Annotated[
    Path | None,
    typer.Option("--nodes", metavar="HOSTFILE", help="Run on these hosts, one `<host> slots=<processes>` per line."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run, such as runs/imdb_smollm2.")]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of expected errors too.")] = False,
) -> None:
    if debug:
        os.environ["RLHF_DEBUG"] = "1"  # the stages' processes read it as well


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    first: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Start at this stage.")] = None,
    only: Annotated[str | None, typer.Option("--only", metavar="STAGE", help="Run just this stage.")] = None,
    force: Annotated[
        list[str] | None, typer.Option("--force", metavar="STAGE|all", help="Run anew; may be repeated.")
    ] = None,
    allow: Allowed = None,
    nodes: Nodes = None,
    restarts: Annotated[
        int | None, typer.Option("--restarts", min=0, help="Start a stage that lost a rank again, so often.")
    ] = None,
    print_commands: Annotated[
        bool, typer.Option("--print-commands", help="Print the lines that would start each stage; run nothing.")
    ] = False,
) -> None:
    """Run the chain: skip what is finished and unchanged, resume what was interrupted, report."""
    selection = Selection(first, only, tuple(force or ()), tuple(allow or ()))
    again = [] if restarts is None else [f"launch.restarts={restarts}"]
    loaded = _valid(config, [*(overrides or ()), *_hosts(nodes), *again])
    if print_commands:
        for line in start_lines(loaded, selection.steps(loaded)):
            _say(line)
        return
    raise typer.Exit(run_chain(loaded, selection, sys.argv, console))


@app.command()
def stage(
    name: Annotated[str, typer.Argument(metavar="|".join(STEPS), help="Stage to run in this process.")],
    run_dir: RunFolder,
    force: Annotated[bool, typer.Option("--force", help="Run anew even when finished.")] = False,
    allow: Allowed = None,
) -> None:
    """Run one stage of a run folder in this process; `rlhf run` prints and starts this command."""
    if name not in STEPS:
        raise InputError("RUN03", f"no stage '{name}'; found {', '.join(STEPS)}", fix="name one of these")
    from pipeline.stage_process import run_stage

    run = RunDir.open(run_dir)
    with stage_lock(run.path) if World.from_environment().main else nullcontext():
        raise typer.Exit(run_stage(run, name, force, allow or ()))


@app.command()
def check(config: ConfigFile, overrides: Overrides = None, nodes: Nodes = None) -> None:
    """Look through config, data, models, reward functions and environment; print the batch plan. Loads no model.

    With --nodes also through every host: ssh, Python, packages, code, clock, shared folder, disk, network.
    """
    loaded = _valid(config, [*(overrides or ()), *_hosts(nodes)])
    found = preflight.check(loaded)
    if nodes:
        check_nodes(loaded, bytes_needed(loaded, RunDir.at(loaded)), found)
    for part, fine in found.fine.items():
        for what in fine:
            _say(f"[{part}] {what}")
    for note in found.notes:
        _say(f"note: {note}")
    console.print(batch_plan.table(found.plan))
    raise_together(found.errors)
    _say(f"{config}: no mistakes found")


def _valid(config: Path, overrides: list[str] | None) -> PipelineConfig:
    """The config. Raises InputError with all its mistakes, and with those of the files that it names."""
    loaded = read_config(config, overrides or ())
    if loaded.mistakes:
        raise_together([*(error for _, error in loaded.mistakes), *preflight.check_beside(loaded)])
    return loaded.valid()


def _hosts(nodes: Path | None) -> list[str]:
    return [] if nodes is None else [f"launch.hostfile={nodes}"]


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@app.command(name="data")
def data_command(
    config: ConfigFile,
    overrides: Overrides = None,
    stage: Annotated[str | None, typer.Option("--stage", metavar="|".join(STAGES), help="Just this stage.")] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of each stage, at even distances.")] = 5,
    html: Annotated[Path | None, typer.Option("--html", metavar="OUT", help="Write a page instead.")] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Show the id of each token.")] = False,
) -> None:
    """Show rows as the model sees them: every token, the loss mask, what is cut. Loads no model."""
    from pipeline.texts.command import Wanted, show_data

    show_data(_valid(config, overrides), Wanted(stage, rows, html, ids), console)


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    ranks: Annotated[int | None, typer.Option("--ranks", min=1, help="Processes, one device each.")] = None,
    zero: Annotated[int | None, typer.Option("--zero", min=0, max=3, help="ZeRO stage.")] = None,
    memory_gb: Annotated[float | None, typer.Option("--memory-gb", min=0.001, help="Of each device.")] = None,
    device: Annotated[Literal["a100", "h100"], typer.Option(help="Whose speed and memory.")] = "a100",
) -> None:
    """Estimate memory, communication and time of every stage from the model's sizes alone. Loads no model."""
    from pipeline.planner.command import Asked, show_plan

    show_plan(_valid(config, overrides), Asked(ranks, zero, memory_gb, device), console)


@app.command()
def status(run_dir: RunFolder) -> None:
    """Show each stage of a run: its status, time, memory and headline metrics."""
    folder = RunDir.open(run_dir)
    table = Table(title=str(folder.path))
    for column in ("stage", "status", "wall time (s)", "peak memory (GB)", "headline"):
        table.add_column(column, justify="right" if "(" in column else "left")
    for name in STEPS:
        manifest = folder.stage(name).manifest
        headline = "  ".join(f"{key} {value:.4g}" for key, value in manifest.get("headline", {}).items())
        seconds, peak = manifest.get("seconds"), manifest.get("peak_bytes")
        cost = (f"{seconds:.0f}" if seconds else "-", f"{peak / 1e9:.2f}" if peak else "-")
        stopped = f" after step {manifest['step']}" if "step" in manifest else ""
        table.add_row(name, manifest.get("status", "not started") + stopped, *cost, headline)
    console.print(table)


@app.command(name="eval")
def eval_command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[reward_model] RUN_DIR [KEY=VALUE]...",
            help="A run such as runs/imdb_smollm2; overrides such as data.preferences.eval=other.jsonl.",
        ),
    ],
    force: Annotated[bool, typer.Option("--force", help="Policies: anew even when nothing changed.")] = False,
) -> None:
    """Evaluate base, SFT and PPO policy of a run on its held-out prompts, or its reward model on held-out pairs."""
    raise typer.Exit(evaluate(words, force, console))


@app.command()
def report(run_dir: RunFolder) -> None:
    """Write results.json and report.html of a run from what its stages have left so far."""
    conclude(RunDir.open(run_dir), console)


app.command()(model_commands.export)
app.command()(model_commands.chat)


@app.command()
def schema() -> None:
    """Print the JSON schema of a config, with the description and unit of every key."""
    typer.echo(json.dumps(config_schema(), indent=2))


def _told_without_secrets(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(redactor().text("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="")


def _run_app(arguments: Sequence[str] | None) -> None:
    try:
        app(args=arguments)
    except OSError as error:
        if is_full(error):
            raise full_error(error, Path(error.filename or ".").parent, None) from error
        raise


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point: mistakes of the user end in their message and exit code, without a traceback."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # `python -m` has it; reward functions are named relative to it
    sys.excepthook = _told_without_secrets
    try:
        _run_app(arguments)
    except InputError as error:
        if os.environ.get("RLHF_DEBUG"):
            _told_without_secrets(type(error), error, error.__traceback__)
        else:
            print(redactor().text(str(error)), file=sys.stderr)
        sys.exit(exit_code(error))
    sys.exit(0)


if __name__ == "__main__":
    main()
