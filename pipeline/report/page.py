"""The report page: gathers what the template shows and writes it as one file without external resources."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.report import alarms, table
from pipeline.report.plots import stage_plots
from pipeline.report.reading import Row, RunRecord, StageRecord, read_run, section
from pipeline.report.reward_model_facts import facts as reward_model_facts
from pipeline.report.reward_model_plots import reward_model_plots
from pipeline.spaced import spaced
from stages.redaction import redactor

PROMPTS_SHOWN = 12
STEPS_SHOWN = 6
PER_STEP = 3
SCORED = (("score", 2), ("kl", 2), ("length", 0), ("judge", 2))
UNITS = {"kl": "KL", "length": "tokens"}
CHAIN = {"sft": "supervised fine-tuning", "reward_model": "reward model", "ppo": "PPO"}


@dataclass(frozen=True)
class Completion:
    """One completion as shown; `facts` are (name, number)."""

    text: str
    facts: tuple[tuple[str, str], ...] = ()
    cut_off: bool = False


@dataclass(frozen=True)
class Example:
    """A prompt and its completions, each under its title."""

    prompt: str
    completions: Mapping[str, Completion]


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into the run folder from whatever the run has left there so far."""
    target = run_dir / "report.html"
    aside = run_dir / f".report.html.{os.getpid()}"
    try:
        # Model output may hold lone surrogates, which UTF-8 has no bytes for.
        aside.write_text(redactor().values(_render(read_run(run_dir))), encoding="utf-8", errors="replace")
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return target


def _render(record: RunRecord) -> str:
    # Prompts and completions are untrusted text: nothing reaches the page unescaped but the drawn figures.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    evaluation, ppo, sft = (record.stages[name] for name in ("evaluation", "ppo", "sft"))
    measured = record.stages["reward_model"].report
    return environment.get_template("page.html.jinja").render(
        record=record,
        chain=" → ".join(name for stage, name in CHAIN.items() if section(record.config, stage).get("enabled", True)),
        columns=table.columns(record.results),
        rows=table.rows(record.results),
        prompts=max((_count(metrics) for metrics in section(record.results, "models").values()), default=0),
        reward_model_line=table.reward_model_line(record.results),
        facts=_facts(record),
        versions=_versions(record),
        stages=[_stage_row(stage, record.results) for stage in record.stages.values() if stage.present],
        curves=[(table.STAGES[stage.name], stage_plots(stage)) for stage in record.stages.values()],
        reward_model=measured,
        reward_model_facts=reward_model_facts(measured) if measured else [],
        reward_model_plots=reward_model_plots(measured),
        alarms=alarms.listed(ppo.alarms),
        compared=_compared(evaluation.samples),
        progress=_progress(ppo.samples),
        adapted=_adapted(sft.samples),
    )


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    """What was run, as (name, text); unknown facts are left out."""
    model = section(record.config, "model")
    command = record.run.get("command")
    facts = {
        "command": shlex.join(map(str, command)) if isinstance(command, list) else command,
        "started": _moment(record.run.get("created")),
        "model": model.get("path"),
        "base hash": _base_hash(record),
        "precision": _precision(model),
        "seed": record.config.get("seed"),
        "git revision": record.run.get("git"),
        "platform": record.run.get("platform"),
    }
    data = [(f"data, {role}", text) for role, text in _data(record).items()]
    return [(name, str(value)) for name, value in facts.items() if value is not None] + data


def _precision(model: Row) -> str | None:
    known = [f"{key} {model[key]}" for key in ("dtype", "compute") if key in model]
    return ", ".join(known) or None


def _base_hash(record: RunRecord) -> str | None:
    hashes = (section(stage.manifest, "base").get("hash") for stage in record.stages.values())
    return next((str(found) for found in hashes if found), None)


def _data(record: RunRecord) -> dict[str, str]:
    """Each data file with the start of its sha256, by role."""
    sums: Row = {}
    for stage in record.stages.values():
        sums |= section(stage.manifest, "data")
    described = {}
    for role, split in section(record.config, "data").items():
        paths = [str(path) for path in section({"split": split}, "split").values() if path]
        described[role] = ", ".join(f"{p} ({str(sums[p])[:12]})" if p in sums else p for p in paths)
    return {role: text for role, text in described.items() if text}


def _versions(record: RunRecord) -> dict[str, str]:
    known = section(record.run, "versions")
    return {str(package): str(version) for package, version in known.items() if version}


def _stage_row(stage: StageRecord, results: Row) -> Row:
    cost = section(results, "stages", stage.name)
    headline = section(stage.manifest, "headline")
    return {
        "title": table.STAGES[stage.name],
        "status": str(stage.manifest.get("status", "unknown")),
        "started": _moment(stage.manifest.get("started")) or table.MISSING,
        "duration": table.duration(stage.manifest.get("seconds", cost.get("seconds"))),
        "memory": table.memory(stage.manifest.get("peak_bytes", cost.get("peak_bytes"))),
        "headline": ", ".join(f"{name} {_headline(value)}" for name, value in headline.items()),
    }


def _headline(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _moment(value: Any) -> str | None:
    """An ISO 8601 time to the second, without the T."""
    return str(value)[:19].replace("T", " ") if value else None


def _count(metrics: Any) -> int:
    counts = (section({"m": metrics}, "m", column.metric).get("n", 0) for column in table.COLUMNS)
    return max((n for n in counts if isinstance(n, int)), default=0)


def _compared(samples: Sequence[Row]) -> list[Example]:
    """Base, SFT and PPO on the same prompts, evenly spaced over the held-out set: nobody picked them."""
    groups: dict[Any, dict[str, Row]] = {}
    for row in samples:
        groups.setdefault(str(row.get("index")), {})[str(row.get("model"))] = row
    examples = []
    for group in spaced(list(groups.values()), PROMPTS_SHOWN):
        shown = {title: _completion(group[model]) for model, title in table.MODELS.items() if model in group}
        if shown:
            examples.append(Example(_text(next(iter(group.values())).get("prompt")), shown))
    return examples


def _progress(samples: Sequence[Row]) -> list[tuple[int, list[Example]]]:
    """PPO rollouts at a few steps from the first to the last."""
    by_step: dict[int, list[Row]] = {}
    for row in samples:
        by_step.setdefault(row["step"], []).append(row)
    # A resumed run prints the samples of a step again; the later ones belong to the model that was kept.
    chosen = {step: by_step[step][-PER_STEP:] for step in spaced(sorted(by_step), STEPS_SHOWN)}
    return [(step, [_rollout(row) for row in rows]) for step, rows in chosen.items()]


def _rollout(row: Row) -> Example:
    return Example(_text(row.get("prompt")), {"PPO": _completion(row)})


def _adapted(samples: Sequence[Row]) -> list[Example]:
    """SFT: the same prompts before and after, beside the demonstration."""
    groups: dict[str, dict[str, Row]] = {}
    for row in samples:
        groups.setdefault(_text(row.get("prompt")), {})[str(row.get("when"))] = row
    examples = []
    for prompt, group in spaced(list(groups.items()), PER_STEP):
        shown = {when: _completion(group[when]) for when in ("before", "after") if when in group}
        reference = next(iter(group.values())).get("reference")
        if reference:
            shown["demonstration"] = Completion(_text(reference))
        examples.append(Example(prompt, shown))
    return examples


def _completion(row: Row) -> Completion:
    known = [(name, digits) for name, digits in SCORED if row.get(name) is not None]
    facts = tuple((UNITS.get(name, name), table.number(row[name], digits)) for name, digits in known)
    terms = section(row, "terms")
    if len(terms) > 1:
        facts += tuple((str(name), table.number(value, 2)) for name, value in terms.items() if value is not None)
    # The space that joins prompt and completion belongs to the completion; here it would only indent.
    return Completion(_text(row.get("completion")).removeprefix(" "), facts, cut_off=row.get("stopped") is False)


def _text(value: Any) -> str:
    """A text, or a conversation as `role: content` lines."""
    if isinstance(value, list):
        return "\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in value if isinstance(m, dict))
    return "" if value is None else str(value)
