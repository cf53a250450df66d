"""Convolutions with large kernels on a CPU as products of Fourier coefficients: the same values in less time.

    python -m benchmarks.common.fourier_convolution SCRIPT [its arguments]

runs a script with them; `train.py --fourier` trains so, and `fourier_cost.py` says what it gives. A product of
coefficients takes some 2 multiplications for each pixel and pair of channels where a 7×7 kernel takes 49. The
transforms are matrix products (the maps are small), so a side need not be a power of two.
"""

import math
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import nn

SMALLEST_KERNEL, FEWEST_CHANNELS = 5, 16  # below, PyTorch's own is as fast
IMAGES = 8  # transformed at a time, so that what is between two matrix products stays in the cache
Coefficients = tuple[torch.Tensor, torch.Tensor]  # real and imaginary part, each (rows × columns, B, C)


class FourierConvolution(torch.autograd.Function):
    """Convolution with an odd square kernel, stride 1 and "same" padding.

    Rows and columns are cyclic of length h + k // 2: the zeros behind the map are those before it too.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) and (O, C, k, k) → (B, O, h, w), all float32."""
        kernel = weight.shape[-1]
        padding = kernel // 2
        sides = (x.shape[-2] + padding, x.shape[-1] + padding)
        xr, xi = transform(x, sides)
        wr, wi = (part.mT.contiguous() for part in transform(weight, sides))
        ctx.save_for_backward(xr, xi, wr, wi)
        ctx.shapes = (sides, kernel, padding, x.shape[-2:])
        # as everywhere in deep learning it is a correlation: x times the conjugate of the weight
        yr = torch.bmm(xr, wr).baddbmm_(xi, wi)
        yi = torch.bmm(xi, wr).baddbmm_(xr, wi, alpha=-1)
        return inverse((yr, yi), sides, x.shape[-2:], first=-padding)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Gradients by x (where it wants one) and by the weight."""
        xr, xi, wr, wi = ctx.saved_tensors
        sides, kernel, padding, size = ctx.shapes
        gr, gi = transform(gradients[0], sides, first=-padding)
        dr = torch.bmm(gr.mT, xr).baddbmm_(gi.mT, xi)
        di = torch.bmm(gr.mT, xi).baddbmm_(gi.mT, xr, alpha=-1)
        by_weight = inverse((dr, di), sides, (kernel, kernel))
        if not ctx.needs_input_grad[0]:
            return None, by_weight
        dr = torch.bmm(gr, wr.mT).baddbmm_(gi, wi.mT, alpha=-1)
        di = torch.bmm(gr, wi.mT).baddbmm_(gi, wr.mT)
        return inverse((dr, di), sides, size), by_weight


def transform(x: torch.Tensor, sides: tuple[int, int], first: int = 0) -> Coefficients:
    """(B, C, h, w) → the Fourier coefficients of the map, zeros around it up to `sides`.

    The map is real, so half of the rows suffice: sides[0] // 2 + 1.

    Args:
        x: The maps, whose first row and column are number `first`.
        sides: Rows and columns after which it repeats.
        first: Negative where the map begins before 0.
    """
    batch, channels, height, width = x.shape
    half = sides[0] // 2 + 1
    of_rows, to_real, to_imaginary = _forward_matrices(sides, first, height, width)
    real, imaginary = (x.new_empty(half, sides[1], batch, channels) for _ in range(2))
    for start in range(0, batch, IMAGES):
        some = slice(start, start + IMAGES)
        part = of_rows @ x[some].permute(2, 3, 0, 1).reshape(height, -1)
        part = part.view(half, 2 * width, -1)
        for result, matrix in ((real, to_real), (imaginary, to_imaginary)):
            result[:, :, some] = torch.bmm(matrix.expand(half, -1, -1), part).view(half, sides[1], -1, channels)
    return real.flatten(0, 1), imaginary.flatten(0, 1)


def inverse(y: Coefficients, sides: tuple[int, int], size: tuple[int, int], first: int = 0) -> torch.Tensor:
    """The map (B, C, *size), from row and column `first` on, that has these Fourier coefficients."""
    half = sides[0] // 2 + 1
    of_real, of_imaginary, to_rows = _inverse_matrices(sides, first, *size)
    real, imaginary = (part.unflatten(0, (half, sides[1])) for part in y)
    batch, channels = real.shape[2:]
    x = torch.empty(batch, channels, *size, memory_format=torch.channels_last)
    for start in range(0, batch, IMAGES):
        some = slice(start, start + IMAGES)
        part = torch.bmm(of_real.expand(half, -1, -1), real[:, :, some].flatten(2))
        part.baddbmm_(of_imaginary.expand(half, -1, -1), imaginary[:, :, some].flatten(2))
        x[some] = (to_rows @ part.view(2 * half, -1)).view(*size, -1, channels).permute(2, 3, 0, 1)
    return x


def _waves(side: int, frequencies: int, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (frequencies, count) at the places from `first` on."""
    places = torch.arange(first, first + count, dtype=torch.float64)
    angle = 2 * math.pi / side * torch.outer(torch.arange(frequencies, dtype=torch.float64), places)
    return angle.cos(), angle.sin()


@lru_cache
def _forward_matrices(sides: tuple[int, int], first: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
    """Columns of h → real and imaginary part of each frequency, in turn; rows of w of these → real, imaginary part."""
    cos, sin = _waves(sides[0], sides[0] // 2 + 1, first, height)
    of_rows = torch.stack([cos, -sin], 1).flatten(0, 1)
    cos, sin = _waves(sides[1], sides[1], first, width)
    return of_rows.float(), torch.cat([cos, sin], 1).float(), torch.cat([-sin, cos], 1).float()


@lru_cache
def _inverse_matrices(sides: tuple[int, int], first: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
    """The way back; a frequency of the rows that stands for its conjugate too counts twice."""
    cos, sin = (wave.T for wave in _waves(sides[1], sides[1], first, width))
    of_real, of_imaginary = torch.cat([cos, sin]), torch.cat([-sin, cos])
    half = sides[0] // 2 + 1
    alone = [row for row in range(half) if 2 * row % sides[0] == 0]
    times = torch.full((half, 1), 2.0, dtype=torch.float64)
    times[alone] = 1
    cos, sin = (wave * times / math.prod(sides) for wave in _waves(sides[0], half, first, height))
    to_rows = torch.stack([cos, -sin], 1).flatten(0, 1).T
    return of_real.float(), of_imaginary.float(), to_rows.float()


def fits(convolution: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether this way computes what the layer does, and faster."""
    kernel = convolution.kernel_size[0]
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and convolution.kernel_size == (kernel, kernel)
        and kernel % 2 == 1
        and kernel >= SMALLEST_KERNEL
        and convolution.padding == (kernel // 2, kernel // 2)
        and convolution.padding_mode == "zeros"
        and convolution.stride == convolution.dilation == (1, 1)
        and convolution.groups == 1
        and convolution.in_channels >= FEWEST_CHANNELS
    )


@contextmanager
def fourier_convolutions() -> Iterator[None]:
    """Within it, every `nn.Conv2d` that fits computes so."""
    usual = nn.Conv2d._conv_forward

    def forward(self: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if not fits(self, x, weight):
            return usual(self, x, weight, bias)
        y: torch.Tensor = FourierConvolution.apply(x, weight)
        return y if bias is None else y.add_(bias[:, None, None])

    nn.Conv2d._conv_forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Conv2d._conv_forward = usual  # type: ignore[method-assign]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(f"give the script to run: {__doc__.splitlines()[2].strip()}")
    sys.argv = sys.argv[1:]
    with fourier_convolutions():
        runpy.run_path(sys.argv[0], run_name="__main__")
