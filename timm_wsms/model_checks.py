"""Whether a model takes the images that it is meant for."""

from collections.abc import Sequence

import torch
from torch import nn

from timm_wsms.cli_errors import is_out_of_memory
from timm_wsms.errors import UserError


def check_train_sizes(
    network: nn.Module,
    name: str,
    channels: int,
    train_sizes: Sequence[int] | None,
    num_classes: int,
    kwargs: str = "model_kwargs",
) -> None:
    """Runs the network once at each side of `data.train_sizes`; arguments and errors as for `check_input`."""
    for side in train_sizes or ():
        check_input(network, name, (channels, side, side), num_classes, "data.train_sizes", kwargs)


def check_input(
    network: nn.Module,
    name: str,
    input_size: Sequence[int],
    num_classes: int,
    option: str = "data.input_size",
    kwargs: str = "model_kwargs",
) -> None:
    """Runs the network once, on one black image in eval mode, which changes nothing in it.

    Args:
        network: images (b, channels, height, width) to logits (b, classes).
        name: what to call it in the message.
        input_size: (channels, height, width).
        num_classes: the expected number of logits.
        option: the option that sets the size.
        kwargs: the option that sets the network's arguments.

    Raises:
        UserError: it does not accept images of this size.
    """
    size = "×".join(str(length) for length in input_size)
    was_training = network.training
    device = next((parameter.device for parameter in network.parameters()), None)
    network.eval()
    try:
        with torch.no_grad():
            logits = network(torch.zeros(1, *input_size, device=device))
    except (RuntimeError, ValueError, AssertionError) as error:
        if is_out_of_memory(error) or (isinstance(error, UserError) and option != "data.train_sizes"):
            raise
        remedy = f"set {option}, or {kwargs} such as in_chans, img_size or stages"
        if option == "data.train_sizes":
            remedy = f"set other {option}, or {kwargs}.dynamic_img_size true if it takes that"
        raise UserError(
            f"{name} cannot take images of {size} (channels × height × width): {error}; {remedy}"
        ) from error
    finally:
        network.train(was_training)
    if not isinstance(logits, torch.Tensor):
        raise UserError(f"{name} returns a {type(logits).__name__}, not logits; leave out features_only")
    if logits.shape != (1, num_classes):
        raise UserError(
            f"{name} returns an output of shape {tuple(logits.shape)} for one image, not (1, {num_classes})"
        )
