"""What a network costs: parameters and multiplications."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from timm_wsms.utils import eval_mode


def parameters(model: nn.Module) -> int:
    """Number of parameters; one that several stages share counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiplications(model: nn.Module, input_size: Sequence[int]) -> int:
    """Number of multiplications in one forward pass for one image.

    Convolutions, matrix products and attention, counted by torch's `FlopCounterMode` (which counts an addition for each
    multiplication) in eval mode without compilation. The model's mode and running statistics stay as they are.

    Args:
        model: Takes images (1, channels, height, width).
        input_size: (channels, height, width) in pixels.
    """
    like = next(model.parameters(), torch.empty(0))
    image = torch.zeros(1, *input_size, dtype=like.dtype, device=like.device)
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped; torch runs it eagerly under a counter
    # the counter does not know every fused form of attention
    with sdpa_kernel(SDPBackend.MATH), eval_mode(model), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2
