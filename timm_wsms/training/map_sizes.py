"""Finds, before a run begins, what cannot be trained because a feature map has a single pixel."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.training.freeze import new_parts
from timm_wsms.training.settings import Settings
from timm_wsms.utils import eval_mode

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def check_single_images(
    network: nn.Module, settings: Settings, sizes: Sequence[tuple[int, ...]], num_processes: int
) -> None:
    """Checks that batch normalization gets more than one value per channel from a micro-batch of one image.

    Args:
        network: on the CPU; it is not changed.
        settings: the run's settings.
        sizes: sizes of the training images, (channels, height, width) each.
        num_processes: how many share a batch.

    Raises:
        UserError: it does not, so that its variance would be undefined.
    """
    if settings.sync_bn and num_processes > 1:  # the others' images count
        return
    trained = {*network.modules()}
    if settings.freeze == "backbone" and settings.freeze_epochs is None:  # the other norms stay in eval mode
        trained = {module for part in new_parts(network) for module in part.modules()}

    def is_single(module: nn.Module, x: torch.Tensor) -> bool:
        return isinstance(module, NORMS) and module in trained and x.numel() == x.shape[1]

    for size in sizes:
        if (name := _first_layer(network, size, is_single)) is not None:
            image = "×".join(map(str, size))
            raise UserError(
                f"{settings.model} cannot be trained on one {image} image at a time: batch normalization {name} would "
                "get a single value per channel; raise --batch_size, lower --grad_accumulation, or choose larger images"
            )


def needs_float32(
    network: nn.Module, settings: Settings, sizes: Sequence[tuple[int, ...]], device: torch.device
) -> str | None:
    """Says why a network has to be trained in float32 although the settings ask for bf16; None if it doesn't.

    PyTorch has computed wrong weight gradients in bf16 on CPUs for a strided convolution of a one-pixel map, after
    which runs diverged. This depends on the CPU, so the layer's shape decides, not a trial.

    Args:
        network: on the CPU; not modified.
        settings: the run's settings.
        sizes: sizes of the training images, (channels, height, width) each.
        device: where it is trained.
    """
    if settings.precision != "bf16" or device.type != "cpu":
        return None

    def is_affected(module: nn.Module, x: torch.Tensor) -> bool:
        if not isinstance(module, nn.Conv2d) or max(module.kernel_size) == 1 or max(module.stride) == 1:
            return False
        return x.shape[-2:] == (1, 1)

    for size in sizes:
        if (name := _first_layer(network, size, is_affected)) is not None:
            return (
                f"warning: {settings.model} is trained in float32: on CPUs PyTorch can compute wrong bf16 gradients "
                f"for a strided convolution of a 1×1 map ({name}); larger images or fewer stages would avoid it"
            )
    return None


def _first_layer(
    network: nn.Module, size: tuple[int, ...], is_wanted: Callable[[nn.Module, torch.Tensor], bool]
) -> str | None:
    """The name of the first layer whose input meets a condition, in a pass of one black image in eval mode."""
    found: list[str] = []
    names = {module: name for name, module in network.named_modules()}

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], torch.Tensor) and is_wanted(module, inputs[0]):
            found.append(names[module])

    leaves = [module for module in network.modules() if isinstance(module, (nn.Conv2d, *NORMS))]
    handles = [module.register_forward_pre_hook(look) for module in leaves]
    try:
        with eval_mode(network):
            network(torch.zeros(1, *size))
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
