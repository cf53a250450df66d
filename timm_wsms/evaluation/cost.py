"""What a network costs: parameters and multiplications."""

from __future__ import annotations

from torch import nn

from timm_wsms.utils import multiplications

__all__ = ["multiplications", "parameters"]


def parameters(model: nn.Module) -> int:
    """Number of parameters; one that several stages share counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
