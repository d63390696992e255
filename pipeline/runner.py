"""Walks the stages: skips what is finished and unchanged, stops at the first failure. Imports no torch."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from pipeline import preflight
from pipeline.attempt import fail_from_outside
from pipeline.checkpoints import CheckpointManager
from pipeline.config import PipelineConfig
from pipeline.drift import Verdict, decide
from pipeline.identity import listed
from pipeline.launch import continue_command, last_lines, printable, rlhf, run_logged, stage_command
from pipeline.lineage import inputs_of
from pipeline.locks import chain_lock
from pipeline.parents import require_accuracy
from pipeline.problems import EXIT_HANG, EXIT_INPUT, raise_together
from pipeline.ranked_stage import ranked_stage, run_ranks
from pipeline.restarts import with_restarts
from pipeline.results import write_results
from pipeline.rundir import RunDir
from pipeline.selection import Selection
from pipeline.signals import Relay
from pipeline.starting import for_slurm, leave_for_slurm, opening, shown
from pipeline.storage import writing_errors
from pipeline.watchdog import Watch
from stages.base import InputError
from stages.redaction import redactor

TAIL = 30


def run_chain(config: PipelineConfig, selection: Selection, command: Sequence[str], console: Console) -> int:
    """Prepare, check, run every selected step, write results and report; returns the exit code.

    Raises:
        InputError: the config, data or parents do not fit; RM06 the reward model is worse than demanded.
    """
    steps = selection.steps(config)
    raise_together(writing_errors(config))
    run = RunDir.of(config)
    for line in opening(config):
        _say(console, line)
    with chain_lock(run.path), Relay().installed() as relay:
        run.describe(config, command)
        if preflight.unprepared(config):  # what is wrong already is told before a script takes its time
            raise_together(preflight.check(config).errors)
        code = _prepare(config, run, console, relay)
        if code:
            return code
        found = preflight.check(config)
        for note in found.notes:
            _say(console, f"note: {note}")
        raise_together(found.errors)
        if for_slurm(config):
            _say(console, leave_for_slurm(config, run, selection.options()))
            return 0
        _refuse_drift(run, config, steps, selection)
        walk = _Walk(run, config, selection, console, relay)
        for step in steps:
            code = with_restarts(walk.config, step, partial(_run_step, walk, step), walk.say, relay)
            if code:
                return code
            if step == "reward_model":
                _require_accuracy(run, config, console)
        conclude(run, console)
    return 0


def _require_accuracy(run: RunDir, config: PipelineConfig, console: Console) -> None:
    """Stop the chain at a reward model that is worse than demanded, with a report that shows how.

    Raises:
        InputError: RM06 as in pipeline.parents.
    """
    try:
        require_accuracy(run, config)
    except InputError:
        conclude(run, console)
        raise


def _verdict(run: RunDir, config: PipelineConfig, step: str, selection: Selection) -> Verdict:
    """What to do with a step, from names and sizes of its checkpoints; its own process reads every byte."""
    folder = run.stage(step)
    checkpoints = CheckpointManager(folder.checkpoints, keep=1, tell=lambda _: None, every_byte=False)
    identity = inputs_of(run, config, step).identity
    return decide(folder, identity, checkpoints, selection.forces(step), selection.allow)


def _refuse_drift(run: RunDir, config: PipelineConfig, steps: Sequence[str], selection: Selection) -> None:
    """Tell before the first stage starts that a later one could not go on from its checkpoint.

    Raises:
        InputError: CKPT04 and CKPT05 as in pipeline.drift.
    """
    for step in (step for step in steps if run.stage(step).manifest):
        try:
            _verdict(run, config, step, selection)
        except InputError as error:
            if error.code.startswith("CKPT"):
                raise


@dataclass(frozen=True)
class _Walk:
    """What every step of a chain is run with."""

    run: RunDir
    config: PipelineConfig
    selection: Selection
    console: Console
    relay: Relay

    def say(self, text: str) -> None:
        _say(self.console, text)


def _run_step(walk: _Walk, step: str, again: bool, gone: Sequence[str]) -> int:
    """Run a step, without the hosts that are `gone`; `again` after an attempt of this walk that failed."""
    run, folder = walk.run, walk.run.stage(step)
    selection = replace(walk.selection, force=()) if again else walk.selection
    verdict = _verdict(run, walk.config, step, selection)
    if verdict.decision == "skip":
        walk.say(f"[{step}] finished and unchanged, skipped")
        return 0
    if verdict.note and verdict.decision == "new":  # what is allowed is told by the stage, which checks it once more
        walk.say(f"[{step}] {verdict.note}:\n{listed(verdict.changed)}".rstrip(":\n"))
    if verdict.decision == "new":
        folder.clear()
    folder.path.mkdir(parents=True, exist_ok=True)
    code = _execute(walk, step, verdict.decision == "resume", gone)
    if code > 128 and folder.manifest.get("status") == "interrupted":  # the stage told what it saved, and how to go on
        return code
    if code == 0 and walk.relay.code:
        walk.say(f"[{step}] finished; stopping here. Continue with:\n    {printable(_again(run))}")
        return walk.relay.code
    if code:
        _tell_failure(step, code, folder.log, continue_command(run.config_file, step), walk.console)
    return code


def _execute(walk: _Walk, step: str, resumes: bool, gone: Sequence[str]) -> int:
    """Run the process, or the processes, of a step to their end; 0 only for a step that is finished."""
    run, config, folder = walk.run, walk.config, walk.run.stage(step)
    allowed = (part for name in walk.selection.allow for part in ("--allow", name))
    command = [*stage_command(step, run.path), *allowed]
    ranked = ranked_stage(config, run.path, step, command, gone)
    walk.say(f"[{step}] {'resumes' if resumes else 'starts'}: {shown(ranked, command)}")
    watch = Watch(step, folder.path, config.run.hang_timeout_s)
    if ranked:
        with folder.log.open("ab" if resumes else "wb") as log:
            code = run_ranks(ranked, log, walk.relay, watch, walk.say)
    else:
        code = run_logged(command, folder.log, resumes, walk.relay, watch)
    if code == EXIT_HANG and folder.finished:  # only its process did not end
        code = 0
    if code == EXIT_HANG or (code and ranked):
        fail_from_outside(folder, last_lines(folder.log, 1)[-1])  # if it could not say so itself
    return 1 if code == 0 and not folder.finished else code


def _again(run: RunDir) -> list[str]:
    return rlhf("run", str(run.config_file))


def _prepare(config: PipelineConfig, run: RunDir, console: Console, relay: Relay) -> int:
    """Make the files that the run needs, when some are missing."""
    prepare = config.prepare
    if prepare is None or not preflight.unprepared(config):
        return 0
    command = [sys.executable, prepare.script, *prepare.arguments]
    _say(console, f"[prepare] starts: {printable(redactor().command(command))}")
    log = run.path / "prepare.log"
    code = run_logged(command, log, False, relay)
    if relay.code:
        return relay.code
    missing = preflight.unprepared(config)
    if code == 0 and missing:
        console.print(f"{prepare.script} ended well but did not create {', '.join(missing)}", highlight=False)
        code = EXIT_INPUT
    if code:
        _tell_failure("prepare", code, log, _again(run), console)
    return code


def _tell_failure(step: str, code: int, log: Path, again: Sequence[str], console: Console) -> None:
    _say(console, f"\n[{step}] failed with exit code {code}. The end of its log:\n")
    for line in last_lines(log, TAIL):
        _say(console, f"    {line}")
    _say(console, f"\nThe whole log: {log}\nContinue from there with:\n    {printable(again)}")


def conclude(run: RunDir, console: Console) -> None:
    """Write results.json and report.html from what the stages have left so far; print the table."""
    from pipeline.report import result_table, write_report  # draws plots, so not before the end

    results = write_results(run)
    report = write_report(run.path)
    console.print(result_table(results))
    _say(console, f"Results: {run.results_file}\nReport:  {report}")


def _say(console: Console, text: str) -> None:
    """Plain text: nothing wrapped or styled, so that commands can be copied."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
