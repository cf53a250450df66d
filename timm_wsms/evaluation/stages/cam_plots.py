"""A picture of heat maps per stage: what each says for the predicted class, and where, at several object sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from timm_wsms.evaluation.plot_style import make_figure, save_figure
from timm_wsms.evaluation.stages.cam import stage_heat_maps
from timm_wsms.object_scaling import Border, rescale_object
from timm_wsms.utils import eval_mode

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZES = (0.5, 1.0, 2.0)


def plot_heat_maps(
    model: nn.Module,
    images: torch.Tensor,
    labels: Sequence[str],
    class_names: Sequence[str],
    config: Mapping[str, Any],
    path: str | Path,
    title: str = "",
    border: Border = "mean",
) -> Path:
    """Draws images at half, original and double object size, and next to each the heat map of every stage.

    Above each picture is the prediction; above each map, what its stage adds to that class's logit. Maps of one line
    share their scale, red for the class and blue against it.

    Args:
        model: As for `stage_heat_maps`.
        images: (B, C, H, W), normalized, on the model's device.
        labels: The images' true classes, B names.
        class_names: One for each of the model's logits.
        config: Of the images: each channel had `mean` subtracted and was divided by `std`.
        path: PNG file to write.
        title: Name of the model.
        border: What surrounds a smaller object.

    Returns:
        `path`.

    Raises:
        UserError: As `stage_heat_maps`.
    """
    lines = []
    for factor in SIZES:
        shown = rescale_object(images, factor, border)
        with eval_mode(model):
            predicted = model(shown).argmax(1)
        pixels = _as_pixels(shown, config["mean"], config["std"])
        lines.append((factor, pixels, predicted, stage_heat_maps(model, shown, predicted).cpu()))
    stages = lines[0][3].shape[1]
    figure = make_figure(width=1.3 * (1 + stages) * len(images))
    figure.set_figheight(0.6 + 1.55 * len(lines))
    blocks = figure.subfigures(1, len(images), wspace=0.04, squeeze=False)[0]
    for number, block in enumerate(blocks):
        block.suptitle(labels[number], fontsize=10)
        grid = block.subplots(len(lines), 1 + stages, squeeze=False)
        for row, (factor, pixels, predicted, heat) in zip(grid, lines, strict=True):
            row[0].imshow(pixels[number])
            row[0].set_title(class_names[int(predicted[number])], fontsize=8)
            if number == 0:
                row[0].set_ylabel(f"size {factor:g}", fontsize=9)
            _draw_maps(row[1:], pixels[number], heat[number])
            for axes in row:
                axes.set_xticks([])
                axes.set_yticks([])
    return save_figure(figure, path, title)


def _draw_maps(row: Sequence[Axes], pixels: np.ndarray, heat: torch.Tensor) -> None:
    """A map (h, w) for each of the axes over the gray image (H, W, 3)."""
    height, width = pixels.shape[:2]
    limit = max(heat.abs().max().item(), 1e-12)
    for stage, (axes, own) in enumerate(zip(row, heat, strict=True), start=1):
        axes.imshow(pixels.mean(2), cmap="gray", vmin=0, vmax=1)
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)  # the map's pixels are larger
        axes.imshow(own, "RdBu_r", vmin=-limit, vmax=limit, alpha=0.65, interpolation="bilinear", extent=extent)
        axes.set_title(f"stage {stage}: {own.sum().item():+.1f}", fontsize=8)


def _as_pixels(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalized (B, C, H, W) → (B, H, W, 3) between 0 and 1."""
    scale, shift = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (std, mean))
    pixels = (images * scale + shift).clamp(0, 1).expand(-1, 3, -1, -1)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
