"""Pictures of a run: training curves, accuracy against object size, and what is mistaken for what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from timm_wsms.evaluation.plot_style import COLORS, curve_style, dress_axes, dress_size_axes, make_figure, save_figure
from timm_wsms.evaluation.results_table import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_curves(rows: Iterable[Mapping[str, Any]], path: str | Path, title: str = "") -> Path:
    """Draws loss and accuracy by epoch.

    Args:
        rows: Lines of `metrics.jsonl`: each has an `epoch` and numbers. Names that end in `loss` go to the left panel,
            names that end in `top1` or `top5` (percent) to the right; a line may lack any of them.
        path: PNG file to write.
        title: What was trained.

    Returns:
        `path`.
    """
    from matplotlib.ticker import MaxNLocator

    rows = list(rows)
    figure = make_figure(width=9.0)
    loss, accuracy = figure.subplots(1, 2)
    _draw_columns(loss, rows, ("loss",))
    loss.set_ylabel("loss per image (nats)")
    _draw_columns(accuracy, rows, ("top1", "top5"))
    accuracy.set_ylabel("accuracy (%)")
    for axes in (loss, accuracy):
        dress_axes(axes, "epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return save_figure(figure, path, title)


def plot_rows(rows: Sequence[Row], path: str | Path) -> Path | None:
    """Draws the accuracy against object size of the models in a table of results.

    Args:
        rows: In pixels if the last row has such sizes, else relative to the test image's own.
        path: PNG file to write.

    Returns:
        `path`; None, and nothing is drawn, if the last row has no sizes.
    """
    if rows[-1].by_size:
        return plot_sizes({row.model: row.by_size for row in rows if row.by_size}, path)
    if rows[-1].by_factor:
        return plot_sizes({row.model: row.by_factor for row in rows if row.by_factor}, path, relative=True)
    return None


def plot_sizes(
    curves: Mapping[str, Mapping[Any, float]],
    path: str | Path,
    title: str = "",
    relative: bool = False,
) -> Path:
    """Draws accuracy against object size, one curve per model.

    Args:
        curves: Model's name → object size, a number → accuracy in percent.
        path: PNG file to write.
        title: On which data.
        relative: Sizes are relative to the test image's own; otherwise they are in pixels.

    Returns:
        `path`.
    """
    figure = make_figure(width=6.0)
    axes = figure.subplots()
    for number, (name, by_size) in enumerate(curves.items()):
        sizes = sorted(by_size)
        axes.plot(sizes, [by_size[size] for size in sizes], label=name, **curve_style(number, len(sizes)))
    axes.set_ylabel("accuracy (%)")
    sizes = sorted({size for by_size in curves.values() for size in by_size})
    if relative:
        dress_size_axes(axes, sizes)
    else:
        axes.set_xticks(sizes)
        dress_axes(axes, "object size (pixels)")
    return save_figure(figure, path, title)


def plot_costs(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    points: Mapping[str, tuple[float, float]],
    path: str | Path,
    title: str = "",
) -> Path:
    """Draws accuracy against MACs.

    Args:
        curves: Label → (million multiplications, accuracy in percent) at several thresholds or image sizes.
        points: Model's name → the same for models whose cost is fixed.
        path: PNG file to write.
        title: On which data.

    Returns:
        `path`.
    """
    figure = make_figure(width=6.5)
    axes = figure.subplots()
    for number, (name, curve) in enumerate(curves.items()):
        axes.plot(*zip(*curve, strict=True), label=name, **curve_style(number, len(curve)))
    for number, (name, point) in enumerate(points.items(), start=len(curves)):
        axes.plot(*point, label=name, **{**curve_style(number, 1), "linestyle": "none", "markersize": 8})
    axes.set_ylabel("accuracy (%)")
    dress_axes(axes, "mean MACs per image (millions)")
    return save_figure(figure, path, title)


def plot_confusion(matrix: np.ndarray, class_names: Sequence[str], path: str | Path, title: str = "") -> Path:
    """Draws a confusion matrix with its numbers, readable for up to 20 classes.

    Args:
        matrix: Number of images of each class (row) that are taken for each class (column), int64 (classes, classes).
        class_names: One for each row.
        path: PNG file to write.
        title: What was evaluated.

    Returns:
        `path`.
    """
    from torchmetrics.utilities.plot import plot_confusion_matrix

    side = 2.5 + 0.65 * len(class_names)
    figure = make_figure(width=side, height=side)
    plot_confusion_matrix(torch.from_numpy(matrix), figure.subplots(), labels=list(class_names), cmap="Blues")
    return save_figure(figure, path, title)


def plot_mistakes(mistakes: Sequence[tuple[str, str, int, int]], path: str | Path, title: str = "") -> Path:
    """Draws a bar for each of the most frequent mistakes, the first on top.

    Args:
        mistakes: True class, predicted class, how often, number of images of the true class.
        path: PNG file to write.
        title: What was evaluated.

    Returns:
        `path`.
    """
    from matplotlib.ticker import MaxNLocator

    figure = make_figure(width=9.0, height=1.2 + 0.26 * len(mistakes))
    axes = figure.subplots()
    bars = axes.barh(range(len(mistakes)), [times for _, _, times, _ in mistakes], color=COLORS[0])
    axes.bar_label(bars, [f"{times} of {images}" for _, _, times, images in mistakes], padding=3, fontsize=8)
    labels = [f"{label[:35]} → {predicted[:35]}" for label, predicted, _, _ in mistakes]
    axes.set_yticks(range(len(mistakes)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    dress_axes(axes, f"images taken for another class: the {len(mistakes)} most frequent mistakes")
    return save_figure(figure, path, title)


def _draw_columns(axes: Axes, rows: Sequence[Mapping[str, Any]], endings: tuple[str, ...]) -> None:
    """One curve for each name among `rows` that has one of the `endings`."""
    names = dict.fromkeys(name for row in rows for name in row if name.endswith(endings))
    training = [name for name in names if name.startswith("train")]
    others = [name for name in names if name not in training]
    # The first look is kept for training, so that the same color means the same data in both panels.
    looks = [*enumerate(training), *enumerate(others, start=max(1, len(training)))]
    for number, name in looks:
        points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), **curve_style(number, len(points)))
