"""Draws a reward model's report.json: calibration, distributions of scores, accuracy by group, score against length."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.report.drawing import DASHES, MUTED, SERIES, STYLE, Plot, add_legend, as_svg, new_figure
from pipeline.report.reward_model_facts import GROUPS, KINDS, calibration_fact, length_fact

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW_HEIGHT, FRAME_HEIGHT = 0.24, 1.05
"""Inches of a figure of accuracies by group, per group and around them."""
DRAWN = tuple(kind for kind in KINDS if kind != "demonstrations")
"""Kinds of texts in the figures; demonstrations are none of the answers that are compared."""


def reward_model_plots(report: Mapping[str, Any]) -> list[Plot]:
    """The figures of a report; none without one."""
    if not report:
        return []
    import matplotlib

    with matplotlib.rc_context(STYLE):
        return [
            _plot("Calibration", f"On the dotted line sigmoid(margin) is a probability, below it the model is too sure "
                  f"of itself; bars are 95 % intervals. {calibration_fact(report)}.", _reliability(report)),
            _plot("Distribution of scores", "Chosen should lie to the right of rejected; PPO starts from the scores of "
                  "what the SFT model writes. 0 is an average demonstration.", _distributions(report)),
            _plot("Score against length", f"A cloud that leans is a model that pays for length. {length_fact(report)}.",
                  _lengths(report)),
            *(_plot(f"Accuracy by {title}", f"{caption} Bars are 95 % intervals, the dotted line is all pairs.",
                    _groups(report, name, unit))
              for name, (title, unit, caption) in GROUPS.items() if report["groups"].get(name)),
        ]  # fmt: skip


def _plot(title: str, caption: str, figure: "Figure") -> Plot:
    return Plot(title, caption, as_svg(figure, f"reward model {title}", title))


def _reliability(report: Mapping[str, Any]) -> "Figure":
    figure, axes = new_figure("confidence: sigmoid(|margin|)", "ranked as the label says (fraction)")
    bins = report["calibration"]["bins"]
    axes.plot([0.5, 1], [0.5, 1], color=MUTED, linestyle=":", linewidth=1)
    axes.errorbar(
        [b["confidence"] for b in bins], [b["value"] for b in bins], yerr=_bars(bins), color=SERIES[0],
        marker="o", markersize=4.5, linewidth=0.9, capsize=2.5,
    )  # fmt: skip
    axes.set_xlim(0.48, 1.02)
    axes.set_ylim(min(0.48, *(b["low"] for b in bins)) - 0.02, 1.02)
    return figure


def _distributions(report: Mapping[str, Any]) -> "Figure":
    figure, axes = new_figure("score, centred (score units)", "texts of that kind (fraction)")
    shown = [(index, kind) for index, kind in enumerate(DRAWN) if kind in report["scores"]]
    for index, kind in shown:
        found = report["scores"][kind]
        heights = [count / found["n"] for count in found["counts"]]
        axes.stairs(heights, report["edges"], color=SERIES[index], linestyle=DASHES[index], linewidth=1.5,
                    label=KINDS[kind])  # fmt: skip
        axes.stairs(heights, report["edges"], color=SERIES[index], fill=True, alpha=0.15)
    axes.set_ylim(bottom=0)
    add_legend(figure, [axes])
    return figure


def _lengths(report: Mapping[str, Any]) -> "Figure":
    figure, axes = new_figure("length (tokens)", "score, centred (score units)")
    for index, kind in enumerate(DRAWN):
        points = report["scores"].get(kind, {}).get("points", [])
        if points:
            lengths, scores = zip(*points, strict=True)
            axes.scatter(lengths, scores, s=14, color=SERIES[index], alpha=0.6, linewidths=0, marker="os^"[index],
                         label=KINDS[kind])  # fmt: skip
    add_legend(figure, [axes])
    return figure


def _groups(report: Mapping[str, Any], name: str, unit: str) -> "Figure":
    """One row per group, the first on top; all such figures of a report have one scale."""
    groups = report["groups"][name]
    lowest = min(group["low"] for found in report["groups"].values() for group in found)
    height = FRAME_HEIGHT + ROW_HEIGHT * len(groups)
    figure, axes = new_figure("ranked as the label says (fraction)", unit, height)
    rows = range(len(groups))
    axes.axvline(report["accuracy"]["value"], color=MUTED, linestyle=":", linewidth=1)
    axes.errorbar(
        [g["value"] for g in groups], rows, xerr=_bars(groups), color=SERIES[0], marker="o", markersize=4.5,
        linestyle="", linewidth=0.9, capsize=2.5,
    )  # fmt: skip
    axes.set_yticks(rows, [f"{_short(g['name'])}  ({g['n']})" for g in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlim(lowest - 0.02, 1.02)
    return figure


def _short(name: str) -> str:
    """A name that leaves room for the figure; matplotlib would read dollars as mathematics."""
    text = name if len(name) <= 20 else f"{name[:19]}…"
    return text.replace("$", r"\$")


def _bars(parts: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Lengths of the error bars of proportions, below and above."""
    below = [max(part["value"] - part["low"], 0.0) for part in parts]
    above = [max(part["high"] - part["value"], 0.0) for part in parts]
    return [below, above]
