"""Pictures of what object size does: accuracy, and accuracy without each stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from timm_wsms.evaluation.object_size.curve import SizeCurve
from timm_wsms.evaluation.object_size.trained_range import was_trained
from timm_wsms.evaluation.plot_style import COLORS, curve_style, dress_size_axes, make_figure, save_figure
from timm_wsms.evaluation.stages.ablation import StageDrops

if TYPE_CHECKING:
    pass

Range = tuple[float, float]


def plot_size_curves(
    curves: Mapping[str, SizeCurve], trained: Mapping[str, Range | None], path: str | Path, title: str = ""
) -> Path:
    """Draws accuracy against object size, a curve per model with its 95 % interval; sizes seen in training are filled.

    Args:
        curves: Model's name → its curve.
        trained: Model's name → smallest and largest size in training; None where that is not known.
        path: PNG file to write.
        title: On which data.

    Returns:
        `path`.
    """
    figure = make_figure(width=7.0)
    axes = figure.subplots()
    for number, (name, curve) in enumerate(curves.items()):
        look = curve_style(number, len(curve.factors))
        low, high = zip(*curve.interval, strict=True)
        axes.fill_between(curve.factors, low, high, color=look["color"], alpha=0.2, linewidth=0)
        axes.plot(curve.factors, curve.top1, label=name, **{**look, "markerfacecolor": "white", "markersize": 6})
        seen = [place for place, factor in enumerate(curve.factors) if was_trained(factor, trained[name])]
        filled = {"linestyle": "none", "marker": look["marker"], "color": look["color"], "markersize": 6}
        axes.plot([curve.factors[place] for place in seen], [curve.top1[place] for place in seen], **filled)
    axes.set_ylabel("accuracy (%)")
    dress_size_axes(axes, next(iter(curves.values())).factors)
    if any(trained.values()):
        axes.legend(frameon=False, title="filled: sizes seen in training")
    return save_figure(figure, path, title)


def plot_stage_drops(drops: Mapping[str, StageDrops], path: str | Path, title: str = "") -> Path:
    """Draws how many points of accuracy each stage carries, with 95 % intervals: a panel per model, a curve per stage.

    Args:
        drops: Model's name → what it loses without each stage.
        path: PNG file to write.
        title: On which data.

    Returns:
        `path`.
    """
    figure = make_figure(width=2.0 + 5.0 * len(drops))
    panels = figure.subplots(1, len(drops), sharey=True, squeeze=False)[0]
    for axes, (name, lost) in zip(panels, drops.items(), strict=True):
        for stage, (drop, interval) in enumerate(zip(lost.drop, lost.interval, strict=True)):
            look = curve_style(stage, len(lost.factors))
            axes.fill_between(lost.factors, *zip(*interval, strict=True), color=look["color"], alpha=0.2, linewidth=0)
            axes.plot(lost.factors, drop, label=f"stage {stage + 1}", **look)
        axes.axhline(0, color=COLORS[-1], linewidth=0.6)
        axes.set_title(name, fontsize=10)
        dress_size_axes(axes, lost.factors)
    panels[0].set_ylabel("points lost without the stage")
    return save_figure(figure, path, title)
