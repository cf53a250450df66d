"""Images at other sizes, by other means than the package's."""

import torch


def mean_of_blocks(x, side):
    """Each new pixel is the mean of side × side old ones."""
    height, width = x.shape[-2] // side, x.shape[-1] // side
    x = x[..., : height * side, : width * side]
    return x.unflatten(3, (width, side)).unflatten(2, (height, side)).mean((3, 5))


def triangles(old, new):
    """(new, old): what each old pixel weighs in a new one; triangles as wide as two pixels of the coarser grid."""
    scale = old / new
    centers = (torch.arange(new, dtype=torch.float64) + 0.5) * scale - 0.5
    distances = (centers[:, None] - torch.arange(old)).abs() / max(scale, 1.0)
    weights = (1 - distances).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)
