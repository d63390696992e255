"""The reward's functions, servers and the judge, asked about a few real prompts before a model is loaded.

Imports no torch.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from pipeline.config import PipelineConfig
from pipeline.data_checks import Rows
from pipeline.findings import Findings
from pipeline.reward_references import check_references, reference_mistakes
from pipeline.server_checks import check_servers
from reward.base import RewardError
from reward.config import RewardTerm
from reward.dry_run import Patience, Trial, try_all
from reward.metric_config import checked_arguments
from stages.base import InputError
from stages.data import Row

SAMPLES = 4


def check_rewards(config: PipelineConfig, rows: Rows, found: Findings) -> None:
    """CONF09: a judge that is a reward term. REW01 to REW08: a function or server that breaks its contract.

    DATA02, REW04: references that a metric cannot compare with. Each is tried on rows spread over the prompt data, all
    columns included, with completions from the other data; the last completion is empty, as a policy's may be.
    """
    judge = config.evaluation.judge
    if judge and judge in [term.function for term in config.reward]:
        problem = f"evaluation.judge {judge} is also a reward term, so it would judge what was trained on it"
        found.errors.append(InputError("CONF09", problem, fix="use a function that training has not seen"))
    check_references(config, rows, found)
    check_servers(config, [_trial(prompts, _answers(rows), spec="") for prompts in _scored(rows)], found)
    trials = list(_trials(config, rows))
    told: set[str] = set()
    outcomes = try_all([trial for _, trial in trials], Patience(config.check.reward_seconds))
    for (part, trial), outcome in zip(trials, outcomes, strict=True):
        if isinstance(outcome, RewardError):
            if str(outcome) not in told:  # a function that is a term twice, or scores both files
                found.errors.append(InputError(outcome.code, outcome.problem, outcome.fix))
            told.add(str(outcome))
        elif outcome:
            scores = ", ".join("-" if score is None else f"{score:.3g}" for score in outcome)
            found.passed(part, f"{trial.name} on {len(outcome)} samples: {scores}")
        else:
            found.passed(part, f"{trial.name} can be called; no samples to try it on")


def _trials(config: PipelineConfig, rows: Rows) -> Iterator[tuple[str, Trial]]:
    """Part of the chain and trial: each function on the files that it will score."""
    answers = _answers(rows)
    train, held_out = rows.get("prompts.train", []), rows.get("prompts.eval", [])
    for term in config.reward if config.ppo.enabled else ():
        for of_file in filter(partial(_can_be_tried, term), _scored(rows)):
            yield "ppo", _trial(of_file, answers, **_settings(term))
    if config.evaluation.judge:
        yield "evaluation", _trial(held_out or train, answers, spec=config.evaluation.judge)


def _scored(rows: Rows) -> list[Sequence[Row]]:
    """The prompts of training, and held-out ones where they have other columns."""
    train, held_out = rows.get("prompts.train", []), rows.get("prompts.eval", [])
    other = held_out and train and held_out[0].keys() != train[0].keys()
    return [train, held_out] if other else [train]


def _can_be_tried(term: RewardTerm, rows: list[Row]) -> bool:
    """Whether it is a function, or a metric that has what it compares with; what it lacks is told already."""
    compares = term.reference is not None and bool(rows)
    return bool(term.function or term.metric) and not (compares and reference_mistakes(0, term, "", rows))


def _settings(term: RewardTerm) -> dict[str, Any]:
    """How a trial of this term is made."""
    if term.function:
        how = {"limit": term.limit, "call": term.call, "concurrency": term.concurrency}
        return {"spec": term.function, "arguments": term.arguments, **how}
    arguments = checked_arguments(term.metric, term.reference, term.arguments)
    named = {"label": f"metric {term.metric}", "reference": term.reference}
    return {"spec": f"reward.metrics:{term.metric}", "arguments": arguments, "limit": 1.0, **named}


def _trial(rows: Sequence[Row], answers: Sequence[str], reference: str | None = None, **settings: Any) -> Trial:
    chosen = _spread(rows)
    columns = {name: [row[name] for row in chosen] for name in (chosen[0] if chosen else ()) if name != "prompt"}
    if reference in columns:
        columns["references"] = columns[reference]
    completions = [*_spread(answers)[: len(chosen) - 1], ""] if chosen else []
    return Trial(prompts=[row["prompt"] for row in chosen], completions=completions, columns=columns, **settings)


def _spread(items: Sequence[Any]) -> list[Any]:
    """As many as are tried, evenly over the whole; repeated where there are fewer."""
    return [items[i * len(items) // SAMPLES] for i in range(SAMPLES)] if items else []


def _answers(rows: Rows) -> list[str]:
    """Texts that a policy might write: those it is trained on, or prompts where there are no others."""
    for role in ("demonstrations.train", "demonstrations.eval", "preferences.train", "prompts.train"):
        texts = [text for row in rows.get(role, []) if (text := _answer(row))]
        if texts:
            return texts
    return ["Yes."]


def _answer(row: Row) -> str:
    if "messages" in row:
        return row["messages"][-1]["content"]
    text = row.get("completion") or row.get("chosen") or row.get("text") or row["prompt"]
    return text if isinstance(text, str) else text[-1]["content"]
