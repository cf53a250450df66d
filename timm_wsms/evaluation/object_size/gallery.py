"""The paper's Fig. 5: images that the backbones miss and the WSMS network gets right, next to a random draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from timm_wsms.data import Split
from timm_wsms.errors import UserError
from timm_wsms.evaluation.object_size.curve import SizePredictions
from timm_wsms.evaluation.plot_style import COLORS, make_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS, IMAGES = 8, 24  # in a row; in a half of the picture


def choose(found: Sequence[SizePredictions], seed: int = 0, count: int = IMAGES) -> tuple[np.ndarray, np.ndarray]:
    """Draws test images for both halves of the picture.

    Args:
        found: Predictions of the backbones, and last of the network to be shown.
        seed: Seed of the draw.
        count: Most images in a half.

    Returns:
        Places among the evaluated images, ascending: drawn from those that at size 1 only the last model gets right,
        and from all.

    Raises:
        UserError: There is no model to compare with.
    """
    if len(found) < 2:
        raise UserError("a gallery compares models; name the backbones first and the network to be shown last")
    *others, shown = (predictions.correct[predictions.at_one] for predictions in found)
    gained = np.flatnonzero(shown & ~np.any(others, axis=0))
    rng = np.random.default_rng(seed)
    pools = gained, np.arange(len(shown))
    first, second = (np.sort(rng.choice(pool, min(count, len(pool)), replace=False)) for pool in pools)
    return first, second


def plot_gallery(
    found: Mapping[str, SizePredictions], split: Split, path: str | Path, seed: int = 0, count: int = IMAGES
) -> Path:
    """Draws both halves. Under each image: a line per model, a square per size (smallest first), filled if right.

    Args:
        found: Model's name → its predictions; the network to be shown last.
        split: Where the images come from.
        path: PNG file to write.
        seed: Seed of the draw.
        count: Most images in a half.

    Returns:
        `path`.

    Raises:
        UserError: There is no model to compare with.
    """
    halves = choose([*found.values()], seed, count)
    last = [*found][-1]
    titles = f"(a) missed by the others, recognized by {last}", "(b) drawn from all test images"
    rows = max(1, *(-(-len(half) // COLUMNS) for half in halves))
    figure = make_figure(width=17.0)
    figure.set_figheight(1.4 + (1.05 + 0.12 * len(found)) * rows)
    parts = figure.subfigures(1, 2, wspace=0.02, squeeze=False)[0]
    for part, half, title in zip(parts, halves, titles, strict=True):
        part.suptitle(title, fontsize=11)
        grid = part.subplots(rows, COLUMNS, squeeze=False).ravel()
        for axes in grid:
            axes.axis("off")
        for axes, place in zip(grid, half, strict=False):
            _draw(axes, place, split, [*found.values()])
    _legend(figure, found)
    return save_figure(figure, path, "")


def _draw(axes: Axes, place: int, split: Split, found: Sequence[SizePredictions]) -> None:
    """One image, its class, and the squares."""
    one = found[0]
    image = np.asarray(split.image(int(one.index[place])))
    axes.imshow(image, extent=(0, 1, 0, 1))
    axes.set_title(split.class_names[one.label[place]], fontsize=7, pad=2)
    side = 1 / len(one.factors)
    for line, predictions in enumerate(found):
        color, right = COLORS[line % len(COLORS)], predictions.correct[:, place]
        for size, hit in enumerate(right):
            x, y = (size + 0.5) * side, -0.09 - 0.12 * line
            face = color if hit else "white"
            axes.plot(x, y, "s", color=face, markeredgecolor=color, markersize=4, markeredgewidth=0.7, clip_on=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.03 - 0.12 * len(found), 1)


def _legend(figure: Figure, found: Mapping[str, SizePredictions]) -> None:
    from matplotlib.lines import Line2D

    factors = next(iter(found.values())).factors
    marks = [Line2D([], [], linestyle="none", marker="s", color=COLORS[n % len(COLORS)]) for n in range(len(found))]
    title = f"filled: right at that object size, {factors[0]:.2g} to {factors[-1]:.2g} times, left to right"
    figure.legend(marks, [*found], loc="outside lower center", ncols=len(found), frameon=False, title=title)
