"""Refuses to compile, export or trace what runs threads or decides for each image."""

from typing import Any, NoReturn

import torch

from timm_wsms.errors import UserError


def is_traced(x: Any) -> bool:
    """Whether a forward pass on `x` makes a graph that outlives it: `torch.export`, `torch.jit.trace` or `torch.fx`."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting() or isinstance(x, torch.fx.Proxy)


@torch.compiler.assume_constant_result  # torch.compile and torch.export call it at once, and stop with its message
def refuse(message: str) -> NoReturn:
    """Raise a UserError, which PyTorch's compiler reports as an error of its own, with this message first."""
    raise UserError(message)
