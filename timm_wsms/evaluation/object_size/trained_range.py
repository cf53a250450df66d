"""Which object sizes a model has seen in training, as far as its checkpoint folder says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm_wsms.data.settings import DataSettings, TimmAugmentation
from timm_wsms.errors import UserError
from timm_wsms.foreign import read_json, read_yaml, understood

# timm's smallest and largest area of a crop, by mode, where the settings do not give it
AREAS = {"rrc": (0.08, 1.0), "rkrc": (0.8, 1.0), "rkrr": (0.8, 1.0)}
TOLERANCE = 0.02  # of a factor: a setting may say 1.4 for √2


def trained_sizes(folder: Path, crop_pct: float, side: int) -> tuple[float, float] | None:
    """The smallest and the largest size in training, relative to that at evaluation.

    A crop of the part a of the image's area, resized to the input, shows things 1 / √a times as large as the whole
    image resized to the input does; evaluation, which resizes to input / crop_pct and cuts out the center, 1 / crop_pct
    times (Touvron et al. 2019, Fixing the train-test resolution discrepancy, Section 3). So it is crop_pct / √a.
    Changes of the aspect ratio are ignored, and so is the variety of sizes in the images themselves: 1 is as in the
    data. Scale jitter multiplies these sizes, and so does training at image sizes other than that of evaluation.

    Args:
        folder: A checkpoint folder; its `settings.yaml` is used, which the training script writes.
        crop_pct: At evaluation, the part of the resized image that the center crop keeps.
        side: Height of the network's input at evaluation, in pixels.

    Returns:
        (smallest, largest); None if there are no settings, or they cannot be read.
    """
    try:
        settings = read_yaml(folder / "settings.yaml")
        with understood(folder / "settings.yaml"):
            data: dict[str, Any] = settings["data"]
            augmentation = data.get("augmentation", DataSettings.augmentation)
            smaller, larger = map(float, data.get("scale_jitter") or (1.0, 1.0))
            sides = data.get("train_sizes") or [(data.get("input_size") or _own_size(folder) or (3, side, side))[1]]
            smaller, larger = smaller * min(sides) / side, larger * max(sides) / side
            if augmentation != "timm":
                return (smaller, larger) if augmentation in ("none", "pad_crop_flip") else None
            chosen = data.get("timm") or {}
            mode = chosen.get("train_crop_mode") or TimmAugmentation.train_crop_mode or "rrc"
            least, most = chosen.get("scale") or AREAS[mode]
            sizes = smaller * crop_pct / most**0.5, larger * crop_pct / least**0.5
    except (OSError, UserError):
        return None
    if mode == "rrc":
        return sizes
    # half of the images are not resized
    return min(crop_pct * min(sides) / side, sizes[0]), max(crop_pct * max(sides) / side, sizes[1])


def _own_size(folder: Path) -> list[int] | None:
    """(C, H, W) of a checkpoint folder's model; None if there is no config, as in the folder of a run."""
    path = folder / "config.json"
    return read_json(path)["pretrained_cfg"]["input_size"] if path.is_file() else None


def was_trained(factor: float, sizes: tuple[float, float] | None) -> bool:
    """Whether a factor lies within `trained_sizes`; False where they are not known."""
    return sizes is not None and sizes[0] * (1 - TOLERANCE) <= factor <= sizes[1] * (1 + TOLERANCE)
