"""Whether a model from a stranger's config is as large as the weights next to it, checked before it takes memory."""

from collections.abc import Callable

import torch
from torch import nn

from timm_wsms.errors import UserError

MARGIN = 2  # a classifier for more classes, feature maps, tables that are not part of a state dict
ALWAYS = 2**24  # numbers, 64 MB


def check_size(build: Callable[[], nn.Module], stored: int, where: str) -> None:
    """Check a model's size on the meta device, which computes shapes alone.

    Args:
        build: Builds it, without weights.
        stored: Numbers in the weights' file.
        where: What the weights are called.

    Raises:
        UserError: It is far larger than its weights.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = build()
    except Exception:  # it cannot be built there; or not at all, which is reported when it is built
        return
    asked = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if asked > MARGIN * stored + ALWAYS:
        raise UserError(
            f"the config beside {where} describes a network of {asked / 1e6:,.0f} million numbers, but the "
            f"weights are {stored / 1e6:,.0f} million; they do not belong together, so download both again"
        )
