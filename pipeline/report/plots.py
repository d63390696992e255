"""Draws the panels of a stage: curves over its steps."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.report.drawing import DASHES, MUTED, SERIES, STYLE, Plot, add_legend, as_svg, new_figure
from pipeline.report.panels import STAGE_PANELS, Curve, Panel
from pipeline.report.reading import Series, StageRecord
from pipeline.report.terms import term_panels

if TYPE_CHECKING:  # matplotlib takes a second to import; a table or a test of the reader does not need it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 600
SMOOTH_ABOVE = 60
FRONTIER_CAPTION = "The bargain PPO strikes: up is better, left is cheaper; a flat path has had its gain."


def stage_plots(stage: StageRecord) -> list[Plot]:
    """The panels of a stage for which it logged something."""
    panels = STAGE_PANELS.get(stage.name, ())
    if not any(stage.series(curve.metric) for panel in panels for curve in panel.curves):
        return []
    import matplotlib

    with matplotlib.rc_context(STYLE):
        drawn = [plot for panel in panels if (plot := _panel_plot(panel, stage))]
        if _pairs(stage, "objective") or _pairs(stage, "eval"):
            title = "Score against √KL"
            svg = as_svg(_draw_frontier(stage), f"{stage.name} frontier", title)
            drawn.insert(2, Plot(title, FRONTIER_CAPTION, svg))
        drawn[3:3] = [plot for panel in term_panels(stage) if (plot := _panel_plot(panel, stage))]
    return drawn


def _panel_plot(panel: Panel, stage: StageRecord) -> Plot | None:
    curves = [(curve, stage.series(curve.metric)) for curve in panel.curves]
    if not any(series for _, series in curves):
        return None
    svg = as_svg(_draw_panel(panel, curves, stage), f"{stage.name} {panel.title}", panel.title)
    smoothed = any(curve.style == "line" and len(series.steps) > SMOOTH_ABOVE for curve, series in curves)
    return Plot(panel.title, panel.caption, svg, smoothed)


def _draw_panel(panel: Panel, curves: Sequence[tuple[Curve, Series]], stage: StageRecord) -> "Figure":
    figure, left = new_figure("step", panel.left)
    right = left.twinx() if any(series for curve, series in curves if curve.right) else None
    _draw_areas(left, [(curve, series) for curve, series in curves if curve.style == "area" and series])
    for index, (curve, series) in enumerate(curves):
        axes = right if curve.right else left
        if series and axes is not None and curve.style != "area":
            _draw_curve(axes, curve, series, index, stage)
    if panel.level is not None:
        left.axhline(panel.level, color=MUTED, linestyle=":", linewidth=1)
    if right is not None:
        right.set_ylabel(panel.right)
        right.spines["right"].set_visible(True)
        _open_up(right)
    _open_up(left)
    add_legend(figure, [left] if right is None else [left, right])
    return figure


def _draw_curve(axes: "Axes", curve: Curve, series: Series, index: int, stage: StageRecord) -> None:
    colour = SERIES[index % len(SERIES)]
    if curve.style == "points":
        bars = _error_bars(series, *map(stage.series, curve.interval)) if curve.interval else None
        axes.errorbar(
            series.steps, series.values, yerr=bars, color=colour, marker="o", markersize=4.5, linewidth=0.9,
            linestyle=DASHES[1] if len(series.steps) > 2 else "", capsize=2.5, label=curve.label, zorder=3,
        )  # fmt: skip
        return
    smooth = len(series.steps) > SMOOTH_ABOVE
    if smooth:
        thin = _thinned(series)
        axes.plot(thin.steps, thin.values, color=colour, alpha=0.25, linewidth=0.8)
    shown = _thinned(_running_mean(series) if smooth else series)
    marker = "o" if len(shown.steps) == 1 else ""
    axes.plot(shown.steps, shown.values, color=colour, linestyle=DASHES[index], marker=marker, label=curve.label)


def _draw_areas(axes: "Axes", curves: Sequence[tuple[Curve, Series]]) -> None:
    """Stack the curves over the steps that all of them have."""
    if not curves:
        return
    lookup = [dict(zip(series.steps, series.values, strict=True)) for _, series in curves]
    steps = sorted(set.intersection(*(set(values) for values in lookup)))
    steps = steps[:: max(1, math.ceil(len(steps) / MAX_POINTS))]
    if not steps:
        return
    heights = [[values[step] for step in steps] for values in lookup]
    labels = [curve.label for curve, _ in curves]
    axes.stackplot(steps, heights, labels=labels, colors=SERIES, alpha=0.75, linewidth=0)
    axes.set_ylim(bottom=0)


def _draw_frontier(stage: StageRecord) -> "Figure":
    import matplotlib
    import numpy as np
    from matplotlib.colors import ListedColormap

    figure, axes = new_figure("√KL (√nats per completion)", "score (reward units)")
    rollouts, held_out = _pairs(stage, "objective"), _pairs(stage, "eval")
    if rollouts:
        # The ends of viridis vanish on a white or a black page.
        colours = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.2, 0.92, 24)))
        kept = rollouts[:: max(1, math.ceil(len(rollouts) / MAX_POINTS))]
        steps, x, y = zip(*kept, strict=True)
        points = axes.scatter(x, y, c=steps, cmap=colours, s=18, linewidths=0, label="rollouts")
        bar = figure.colorbar(points, ax=axes, label="step", pad=0.03)
        bar.outline.set_visible(False)
    if held_out:
        _, x, y = zip(*held_out, strict=True)
        axes.plot(x, y, color=SERIES[1], linewidth=0.9, linestyle=DASHES[1], marker="D", label="held out", zorder=3)
    add_legend(figure, [axes])
    return figure


def _pairs(stage: StageRecord, family: str) -> list[tuple[int, float, float]]:
    """(step, sqrt(KL), score); an estimate of the KL below zero counts as zero."""
    kl, score = stage.series(f"{family}/kl"), stage.series(f"{family}/score")
    scores = dict(zip(score.steps, score.values, strict=True))
    shared = [(step, value) for step, value in zip(kl.steps, kl.values, strict=True) if step in scores]
    pairs = [(step, math.sqrt(max(value, 0.0)), scores[step]) for step, value in shared]
    return [pair for pair in pairs if all(map(math.isfinite, pair))]


def _error_bars(series: Series, low: Series, high: Series) -> list[list[float]] | None:
    lows, highs = (dict(zip(end.steps, end.values, strict=True)) for end in (low, high))
    if not (low and high):
        return None
    points = list(zip(series.steps, series.values, strict=True))
    below = [max(value - lows.get(step, value), 0.0) for step, value in points]
    above = [max(highs.get(step, value) - value, 0.0) for step, value in points]
    return [below, above]


def _running_mean(series: Series) -> Series:
    """Mean over the last twentieth of the curve up to each step."""
    window = max(2, len(series.steps) // 20)
    spans = (series.values[max(0, i + 1 - window) : i + 1] for i in range(len(series.values)))
    return Series(series.steps, tuple(sum(span) / len(span) for span in spans))


def _thinned(series: Series) -> Series:
    """At most MAX_POINTS points, the last one always among them."""
    every = max(1, math.ceil(len(series.steps) / MAX_POINTS))
    return Series(series.steps[::-every][::-1], series.values[::-every][::-1])


def _open_up(axes: "Axes") -> None:
    """A constant metric gets a range of its own size, not the rounding noise that autoscaling would show."""
    low, high = axes.dataLim.intervaly
    if math.isfinite(low) and high - low < 1e-6 * abs(high):
        axes.set_ylim(*sorted((0.0, 2 * high)))
