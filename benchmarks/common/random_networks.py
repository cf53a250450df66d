"""Networks with random weights, quickly built: for checks that need weights without meaning, but of every kind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

BANK = 1_000_003  # random numbers; a prime, so that no row of a weight matrix equals another


def trained(model: Any) -> Any:
    """The model with norms as after a training, and nothing left at the zeros or ones that it began with."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if not tensor.is_floating_point():
                continue
            if tensor.ndim < 2:  # norms, biases, scales
                tensor.add_(torch.rand_like(tensor) / 4)
            elif tensor.min() == tensor.max():
                tensor.add_(torch.randn_like(tensor) / 50)
    return model


@contextlib.contextmanager
def cheap_random_numbers() -> Iterator[None]:
    """Tensors are initialized from a bank of random numbers: drawing them anew would take longer than the checks."""
    generator = torch.Generator().manual_seed(0)
    # twice each: whatever begins in the first half has a whole bank ahead of it
    normal = torch.randn(BANK, generator=generator).repeat(2)
    uniform = torch.rand(BANK, generator=generator).repeat(2)
    own = {key: getattr(torch.Tensor, key) for key in ("normal_", "uniform_", "erfinv_")}

    def fill(tensor: torch.Tensor, bank: torch.Tensor, scale: float, shift: float) -> torch.Tensor:
        if not tensor.is_meta:
            start = int(torch.randint(BANK, ()))
            values = bank[start : start + min(BANK, tensor.numel())] * scale + shift
            if tensor.numel() > BANK:
                values = values.repeat(-(-tensor.numel() // BANK))[: tensor.numel()]
            tensor.data.copy_(values.view(tensor.shape))
        return tensor

    def normal_(tensor: torch.Tensor, mean: float = 0, std: float = 1, *, generator: Any = None) -> torch.Tensor:
        return fill(tensor, normal, std, mean)

    def uniform_(tensor: torch.Tensor, low: float = 0, high: float = 1, *, generator: Any = None) -> torch.Tensor:
        return fill(tensor, uniform, high - low, low)

    cheap = {"normal_": normal_, "uniform_": uniform_, "erfinv_": lambda tensor: tensor}
    try:
        for key, function in cheap.items():
            setattr(torch.Tensor, key, function)
        yield
    finally:
        for key, function in own.items():
            setattr(torch.Tensor, key, function)
