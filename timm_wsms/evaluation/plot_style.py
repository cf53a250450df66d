"""How figures look: colors, markers, axes, files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, which color-blind readers can tell apart, without the yellow that vanishes on white;
# each with a marker of its own, so that the curves differ in black and white too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")  # where there are more curves than colors


def curve_style(number: int, points: int) -> dict[str, Any]:
    """matplotlib's arguments for curve `number`, counted from 0, with this many points."""
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number // len(COLORS) % len(LINES)],
        "markersize": 5,
        "markevery": max(1, points // 15),  # markers of hundreds of epochs would hide each other
        "linewidth": 1.8,
    }


def dress_axes(axes: Axes, x_label: str) -> None:
    """Labels the horizontal axis, draws a grid, and a legend if there are curves."""
    axes.set_xlabel(x_label)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)


def dress_size_axes(axes: Axes, factors: Sequence[float]) -> None:
    """Makes the horizontal axis one of object sizes, with a tick at each factor."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(factors, [f"{factor:.2g}" for factor in factors])
    axes.minorticks_off()
    dress_axes(axes, "object size, relative to the test image's own (log scale)")


def make_figure(width: float, height: float = 3.8) -> Figure:
    """A figure (inches) outside pyplot: a user's own plots and back end are left alone. PNG files come from Agg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path, title: str) -> Path:
    """Writes a PNG file and returns its path."""
    if title:
        figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150, format="png")
    return Path(path)
