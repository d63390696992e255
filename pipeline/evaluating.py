"""`rlhf eval`: the policies of a run, or its reward model, on held-out data. Imports no torch before it evaluates."""

import sys
from collections.abc import Sequence

from rich.console import Console

from pipeline.config_loading import load_config
from pipeline.lineage import data_of
from pipeline.model_files import require_safe_models
from pipeline.parents import parents_of, verify_unchanged
from pipeline.policies import final_of
from pipeline.rundir import RunDir
from pipeline.runner import run_chain
from pipeline.selection import Selection
from stages.base import InputError

REWARD_MODEL = "reward_model"


def evaluate(words: Sequence[str], force: bool, console: Console) -> int:
    """What `rlhf eval [reward_model] RUN_DIR [KEY=VALUE]...` does; the exit code."""
    if words[0] == REWARD_MODEL and len(words) > 1:
        evaluate_reward_model(RunDir.open(words[1]), words[2:], console)
        return 0
    config = load_config(RunDir.open(words[0]).config_file, words[1:])
    selection = Selection(only="evaluation", force=("evaluation",) if force else ())
    return run_chain(config, selection, sys.argv, console)


def evaluate_reward_model(run: RunDir, overrides: Sequence[str], console: Console) -> None:
    """Measure the finished reward model of a run; write its report.json, draw report.html, print the tables.

    Raises:
        InputError: CONF08 no held-out preferences are named, RUN04 the stage is not finished, STAGE06 and STAGE08 as in
            pipeline.parents, RM05 the model does not score as it did.
    """
    config = load_config(run.config_file, overrides)
    final = final_of(run.path, REWARD_MODEL)
    data = data_of(config, REWARD_MODEL)
    if "preferences.eval" not in data:
        problem = "a reward model is measured on held-out pairs, and the config names none"
        raise InputError("CONF08", problem, fix="add data.preferences.eval=FILE")
    require_safe_models(config)
    parents = {name: folder.final for name, folder in parents_of(run, config, REWARD_MODEL).items()}
    verify_unchanged({**parents, REWARD_MODEL: final})

    from pipeline.report import write_report
    from pipeline.report.reward_model_facts import reward_model_tables
    from pipeline.stage_calls import measure_reward_model

    report = measure_reward_model(config, data, final, parents.get("sft"), run.stage(REWARD_MODEL).path)
    for table in reward_model_tables(report):
        console.print(table)
    for name, path in (("Numbers", run.stage(REWARD_MODEL).path / "report.json"), ("Report", write_report(run.path))):
        console.print(f"{name}: {path}", highlight=False, markup=False, soft_wrap=True)
