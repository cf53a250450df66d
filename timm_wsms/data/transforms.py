"""From images to normalized tensors."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import timm.data
import torch
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation
from torchvision.transforms import Compose, RandomHorizontalFlip, RandomVerticalFlip

from timm_wsms.data.batch_augmentation import check_scale_jitter
from timm_wsms.data.jpeg_crop import JpegCrop
from timm_wsms.data.scale_jitter import ScaleJitterCrop
from timm_wsms.data.settings import DataSettings
from timm_wsms.errors import UserError
from timm_wsms.foreign import understood

CROP_MODES = ("center", "squash", "border")  # timm's; it treats any other as the first
LARGEST_SIDE = 2**13  # pixels of an image's shorter side before the center crop: more would only fill the memory


def data_config(model: torch.nn.Module, settings: DataSettings, *, use_test_size: bool = False) -> dict[str, Any]:
    """What the images must look like: the model's own `pretrained_cfg`, overlaid with the recipe's values.

    Args:
        model: a timm model.
        settings: `input_size`, `mean`, `std` and `crop_pct` are used, where given.
        use_test_size: take what the model recommends for evaluation, where that differs from its training.

    Returns:
        timm's data config: input_size, interpolation, mean, std, crop_pct, crop_mode.

    Raises:
        UserError: if a value of the recipe cannot be used, or one of the model's, whose config may be a stranger's.
    """
    with understood("what the model's config says of its images", "fix its config.json"):
        config = _data_config(model, settings, use_test_size)
        eval_transform(config)
    return config


def _data_config(model: torch.nn.Module, settings: DataSettings, use_test_size: bool) -> dict[str, Any]:
    config = timm.data.resolve_data_config(model=model, use_test_size=use_test_size)
    for name in ("input_size", "mean", "std", "crop_pct"):
        value = getattr(settings, name)
        if value is not None:
            config[name] = tuple(value) if isinstance(value, list) else value
    size, option = config["input_size"], settings.option
    if len(size) != 3 or size[0] not in (1, 3) or min(size) < 1:
        raise UserError(
            f"{option('input_size')} {list(size)} is not (channels, height, width) with 1 or 3 channels; fix it."
        )
    for name in ("mean", "std"):
        if len(config[name]) != size[0]:
            raise UserError(f"{option(name)} {list(config[name])} must have one value for each of {size[0]} channels.")
    if min(config["std"]) <= 0:
        raise UserError(f"{option('std')} {list(config['std'])} must be positive.")
    if not 0 < config["crop_pct"] <= 1:
        raise UserError(f"{option('crop_pct')} {config['crop_pct']} must be above 0 and at most 1.")
    if config["crop_mode"] not in CROP_MODES:
        raise UserError(f"crop_mode {str(config['crop_mode'])[:60]!r} is none of {', '.join(CROP_MODES)}; fix it.")
    for name, sides in (("input_size", size), ("train_sizes", settings.train_sizes or [0])):
        if max(sides) > LARGEST_SIDE:
            raise UserError(f"{option(name)} {list(sides)} is too large; give at most {LARGEST_SIDE} pixels.")
        if max(sides) / config["crop_pct"] > LARGEST_SIDE:  # the image is resized to this side before it is cropped
            raise UserError(f"{option('crop_pct')} {config['crop_pct']} of {list(sides)} is too small; raise it.")
    return config


def eval_transform(config: dict[str, Any], normalize: bool = True):
    """timm's evaluation transform: resize, center crop, and normalization.

    Args:
        config: from `data_config`.
        normalize: False leaves the pixels as they are.

    Returns:
        A function from a PIL image to float32 (C, H, W), or to uint8 (C, H, W) without normalization.
    """
    return timm.data.create_transform(**config, is_training=False, normalize=normalize)


def train_transform(config: dict[str, Any], settings: DataSettings, normalize: bool = True):
    """The transform of one training image: timm's random one for augmentation "timm", the evaluation's otherwise.

    What is done to a whole batch at once is not in here; see `BatchAugmentation`.

    Args:
        config: from `data_config`.
        settings: `augmentation`, `timm`, `decoding`, `scale_jitter` and `scale_border` are used.
        normalize: False leaves out normalization and what comes after it, which is random erasing.

    Returns:
        A function from a PIL image to float32 (C, H, W), or to uint8 (C, H, W) without normalization.
    """
    if settings.augmentation != "timm":
        return eval_transform(config, normalize)
    augmentation = asdict(settings.timm)
    augmentation["interpolation"] = augmentation["interpolation"] or config["interpolation"]
    try:
        transform = timm.data.create_transform(**{**config, **augmentation}, is_training=True, normalize=normalize)
    except (AssertionError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"timm refuses the settings under data.timm ({error!r}); fix them.") from error
    crop, *rest = transform.transforms
    if jitter := check_scale_jitter(settings):
        if not isinstance(crop, RandomResizedCropAndInterpolation):
            raise UserError(
                "data.scale_jitter requires timm's random-resized crop; leave out data.timm.train_crop_mode."
            )
        jittered = ScaleJitterCrop(crop, jitter, settings.scale_border)
        transform = Compose([jittered, *rest])
    if settings.decoding == "fast" and config["input_size"][0] == 3 and JpegCrop.can_replace(crop):
        return Compose([JpegCrop(jittered if jitter else crop), *rest])
    return transform


def split_off_crop(transform: Callable) -> tuple[JpegCrop | None, Callable]:
    """The crop that a transform begins with, if it can be taken from files that are not decoded, and what follows."""
    steps = getattr(transform, "transforms", [None])
    return (steps[0], Compose(steps[1:])) if isinstance(steps[0], JpegCrop) else (None, transform)


def takes_pixels(transform: Callable) -> bool:
    """Whether a transform, which takes PIL images, does the same to pixels, uint8 (C, H, W), with the same draws."""
    steps = getattr(transform, "transforms", [transform])
    return all(isinstance(step, (RandomHorizontalFlip, RandomVerticalFlip, MaybePILToTensor)) for step in steps)


def random_erasing(settings: DataSettings) -> RandomErasing | None:
    """timm's random erasing, for normalized images; None if the settings have none."""
    chosen = settings.timm
    if settings.augmentation != "timm" or not chosen.re_prob:
        return None
    # Drawn on the CPU wherever the image is, so that what is drawn does not depend on it.
    return RandomErasing(chosen.re_prob, mode=chosen.re_mode, max_count=chosen.re_count, device="cpu")


def normalize(pixels: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Normalizes a batch with exactly the operations of timm's transforms.

    Args:
        pixels: uint8 (B, C, H, W).
        mean: mean of each channel, of pixels between 0 and 1.
        std: likewise.

    Returns:
        float32 (B, C, H, W), contiguous.
    """
    device = pixels.device
    center, scale = torch.tensor([mean, std], device=device)[:, :, None, None]  # (C, 1, 1) each
    most = torch.tensor(255.0, device=device)  # a GPU divides exactly by a tensor, but only approximately by a number
    images = torch.empty(pixels.shape, device=device)
    # One image at a time stays in a processor's cache.
    parts = zip(images, pixels, strict=True) if device.type == "cpu" else [(images, pixels)]
    for image, of in parts:
        image.copy_(of).div_(most).sub_(center).div_(scale)
    return images
