"""Figures as inline SVG with CSS variables for colours: they follow the page's light or dark."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:  # matplotlib takes a second to import; a table or a test of the reader does not need it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (4.6, 3.0)
# Placeholders that the SVG is searched for; the values live in page.css (Okabe-Ito, colour-blind safe).
INK, MUTED, GRID = "#010203", "#040506", "#070809"
SERIES = ("#0a0b0c", "#0d0e0f", "#101112", "#131415")
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {c: f"--c{i}" for i, c in enumerate(SERIES, 1)}
DASHES = ("-", (0, (5, 2)), (0, (1, 1.4)), "-.")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Plot:
    """A drawn panel."""

    title: str
    caption: str
    svg: Markup
    smoothed: bool = False
    """Whether bold lines are running means."""


def new_figure(xlabel: str, ylabel: str, height: float = SIZE[1]) -> "tuple[Figure, Axes]":
    """Labelled axes with a grid in a figure of its own, `height` inches high; drawn under matplotlib's STYLE."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(SIZE[0], height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.margins(y=0.12)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=xlabel == "step", min_n_ticks=1))
    return figure, axes


def add_legend(figure: "Figure", axes: "Sequence[Axes]") -> None:
    """Above the axes, where it cannot cover a curve; a lone curve is named by its axis."""
    entries = [ax.get_legend_handles_labels() for ax in axes]
    handles = [handle for found, _ in entries for handle in found]
    labels = [label for _, found in entries for label in found]
    if len(handles) > 1:
        figure.legend(handles, labels, loc="outside upper left", ncols=len(handles), columnspacing=1.2)


def as_svg(figure: "Figure", name: str, title: str) -> Markup:
    """The figure as an <svg> element to put into a page: no prologue, no metadata, ids of its own."""
    buffer = io.StringIO()
    empty: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    prefix = re.sub(r"\W+", "-", name).lower()
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    opening = rf'<svg \1 role="img" aria-label="{title}">'
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', opening, text, count=1)
    for placeholder, variable in VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    return Markup(text)
