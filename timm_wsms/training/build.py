"""From a name to a network that is known to fit the images."""

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

import timm_wsms  # noqa: F401  registers the names with timm
from timm_wsms.errors import UserError
from timm_wsms.training.faults import is_out_of_memory
from timm_wsms.training.settings import Settings

if TYPE_CHECKING:
    from accelerate import Accelerator


def build_accelerator(settings: Settings) -> "Accelerator":
    """Builds an `accelerate.Accelerator` for the processes, devices and precision at hand.

    Raises:
        UserError: the device does not offer the precision.
    """
    from accelerate import Accelerator

    try:
        accelerator = Accelerator(mixed_precision=settings.precision)
    except ValueError as error:
        raise UserError(f"precision {settings.precision} is not to be had here: {error}") from error
    if settings.precision != "no" and not accelerator.native_amp:  # Accelerate would train in float32 and not say so
        raise UserError(f"precision {settings.precision} is not to be had on {accelerator.device.type}; take another")
    return accelerator


def check_name(name: str) -> None:
    """Checks that timm knows a model of this name, which needs neither data nor a network.

    Raises:
        UserError: it does not; the message names the nearest.
    """
    if ":" not in name and not timm.is_model(name):  # `hf-hub:` and `local-dir:` name places, not models
        nearest = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else 'see timm.list_models("wsms_*")'
        raise UserError(f"there is no model {name}; {hint}")


def build(name: str, kwargs: dict[str, Any], num_classes: int) -> nn.Module:
    """Builds a model by `timm.create_model`.

    Raises:
        UserError: it cannot be built with these arguments; says why.
    """
    try:
        return timm.create_model(name, num_classes=num_classes, **kwargs)
    except (TypeError, ValueError, AssertionError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        raise UserError(f"{name}({given}) cannot be built: {error}") from error


def check_input(network: nn.Module, name: str, input_size: Sequence[int], num_classes: int) -> None:
    """Runs the network once, on one black image in eval mode, which changes nothing in it.

    Args:
        network: images (b, channels, height, width) to logits (b, classes).
        name: what to call it in the message.
        input_size: (channels, height, width).
        num_classes: logits there have to be.

    Raises:
        UserError: it cannot take images of this size.
    """
    size = "×".join(str(length) for length in input_size)
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            logits = network(torch.zeros(1, *input_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        raise UserError(
            f"{name} cannot take images of {size} (channels × height × width): {error}; set data.input_size, or "
            "model_kwargs such as in_chans, img_size or stages"
        ) from error
    finally:
        network.train(was_training)
    if logits.shape != (1, num_classes):
        raise UserError(f"{name} gives an output of shape {tuple(logits.shape)} for one image, not (1, {num_classes})")


def build_optimizer(network: nn.Module, settings: Settings) -> Optimizer:
    """Builds the optimizer by timm's `create_optimizer_v2`.

    Raises:
        UserError: timm has none of this name, or it does not take these arguments.
    """
    chosen = settings.optimizer
    try:
        return create_optimizer_v2(
            network,
            opt=chosen.name,
            lr=settings.lr,
            weight_decay=chosen.weight_decay,
            momentum=chosen.momentum,
            filter_bias_and_bn=not chosen.decay_norm_and_bias,
            **chosen.kwargs,
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"optimizer {chosen.name} cannot be built: {error}") from error
