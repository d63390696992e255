"""A reward model's report.json in words and numbers: for the page, and as tables for the terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from pipeline.report.table import MISSING, number

KINDS = {
    "chosen": "chosen",
    "rejected": "rejected",
    "sft_samples": "SFT samples",
    "demonstrations": "demonstrations",
}
GROUPS = {
    "score_margin": ("score margin", "score units", "It should rise with the distance between the two scores."),
    "data_margin": ("margin of the data", "as in the file", "Pairs that people found clear should be the easy ones."),
    "length_difference": (
        "length difference",
        "chosen - rejected, tokens",
        "Better where chosen is longer than where it is shorter: a taste for length.",
    ),
    "source": ("source", "", "Where the pairs come from."),
}
"""Title of each kind of groups, unit of their names, and what to look for."""
ROWS_PRINTED = 5


def facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What to know first, as (name, text)."""
    accuracy, calibration = report["accuracy"], report["calibration"]
    return [
        ("held-out accuracy", f"{_interval(accuracy, 'pairs')} of {report['pairs']}"),
        ("accuracy of length alone", f'{number(report["length_baseline"]["value"], 3)} ("longer is better")'),
        ("log loss", f"{number(calibration['log_loss'], 3)} nats; 0.693 knows nothing"),
        ("calibration", f"{calibration_fact(report)}; confidence - accuracy {calibration['overconfidence']:+.3f}"),
        ("score and length", length_fact(report)),
        ("label noise", noise_fact(report)),
        ("SFT samples", _sampling(report)),
    ]


def calibration_fact(report: Mapping[str, Any]) -> str:
    """ECE beside what chance makes of it."""
    found = report["calibration"]
    usual, high = number(found["ece_if_calibrated"], 3), number(found["ece_if_calibrated_high"], 3)
    return f"ECE {number(found['ece'], 3)} (a calibrated model: {usual}, in 95 % of draws below {high})"


def length_fact(report: Mapping[str, Any]) -> str:
    """Correlation of score with length, for each kind of texts."""
    names = {"answers": "Chosen and rejected"} | KINDS
    told = [
        f"{names[kind]}: Pearson {found['pearson']:.2f} ({found['low']:.2f} to {found['high']:.2f}), "
        f"Spearman {found['spearman']:.2f}"
        for kind, found in report["length_correlation"].items()
        if kind != "demonstrations"
    ]
    return "; ".join(told) or "nothing varies"


def noise_fact(report: Mapping[str, Any]) -> str:
    """How many labels the model disputes."""
    noise = report["label_noise"]
    if not noise["estimate"]:
        return "no estimate: the model gives its own labels no more than one half"
    estimate, threshold = noise["estimate"], number(noise["threshold"], 2)
    return (
        f"{_interval(estimate, 'sure pairs')}; the model's own probabilities expect {number(noise['expected'], 3)}. "
        f"{noise['disputed']} labels disputed: their opposite has at least a label's mean probability, {threshold}"
    )


def reward_model_tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """The report for a terminal of 80 characters."""
    yield _facts_table(report)
    yield _scores_table(report)
    yield _groups_table(report)
    if report["label_noise"]["rows"]:
        yield _disputed_table(report)


def _facts_table(report: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in facts(report):
        table.add_row(name, Text(text))
    return table


def _scores_table(report: Mapping[str, Any]) -> Table:
    table = _table("scores (centred)", "n", "mean", "std", "5 %", "50 %", "95 %")
    for kind, title in KINDS.items():
        found = report["scores"].get(kind)
        if found:
            quantiles = (found["quantiles"][name] for name in ("5 %", "50 %", "95 %"))
            table.add_row(title, str(found["n"]), *(number(v, 2) for v in (found["mean"], found["std"], *quantiles)))
    return table


def _groups_table(report: Mapping[str, Any]) -> Table:
    table = _table("accuracy by", "pairs", "accuracy", "95 % interval")
    for name, (title, *_) in GROUPS.items():
        for group in report["groups"].get(name, []):
            low, high = number(group["low"], 3), number(group["high"], 3)
            label = Text.assemble(f"{title}: ", (group["name"], "bold"))
            table.add_row(label, str(group["n"]), number(group["value"], 3), f"{low} to {high}")
    return table


def _disputed_table(report: Mapping[str, Any]) -> Table:
    noise = report["label_noise"]
    more = noise["disputed"] - ROWS_PRINTED
    table = _table("disputed labels", "margin", "chosen, as labelled", "rejected, as labelled")
    for row in noise["rows"][:ROWS_PRINTED]:
        texts = (Text(" ".join(row[side].split())[:44]) for side in ("chosen", "rejected"))
        table.add_row(f"row {row['row']}", number(row["margin"], 2), *texts)
    table.caption = f"and {more} more; report.json has the first 20" if more > 0 else None
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, caption_justify="left")
    table.add_column(first)
    for other in others:
        table.add_column(other, justify="left" if "," in other else "right")
    return table


def _interval(proportion: Mapping[str, Any], what: str) -> str:
    low, high = number(proportion["low"], 3), number(proportion["high"], 3)
    return f"{number(proportion['value'], 3)} (95 % interval {low} to {high}, {proportion['n']} {what})"


def _sampling(report: Mapping[str, Any]) -> str:
    drawn, found = report["sft_sampling"], report["scores"].get("sft_samples")
    if not drawn or not found:
        return f"{MISSING} (no SFT model in this run)"
    return (
        f"{found['n']} completions of held-out prompts, at most {drawn['max_new_tokens']} tokens; "
        f"{drawn['unfinished']} reached that"
    )
