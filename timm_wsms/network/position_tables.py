"""Position tables of a backbone for images of another size.

Which grid a table lists is read from timm's modules if they say so; otherwise it is guessed from its length. When a
checkpoint is loaded, timm's own resamplers (`resample_abs_pos_embed`, `resize_rel_pos_bias_table`) do the same by
bicubic interpolation; here it is bilinear, so that no value leaves the table's range.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.network.backbone_traits import Size

Grids = tuple[Size, Size]  # old and new


def find_grids(name: str, old: tuple[Any, nn.Module], new: tuple[Any, nn.Module]) -> Grids | None:
    """The grids of a position table as timm's modules state them; None if they do not.

    Args:
        name: Name of the parameter.
        old: The backbone and its module that holds the table.
        new: The same, built for another image size.
    """
    grids = [_stated_grid(name, *holders) for holders in (old, new)]
    return None if grids[0] is None or grids[1] is None else (grids[0], grids[1])


def _stated_grid(name: str, backbone: Any, module: nn.Module) -> Size | None:
    if name == "relative_position_bias_table":  # of every offset in a window (Swin, BEiT, MaxViT)
        window = getattr(module, "window_size", None)
        return (2 * window[0] - 1, 2 * window[1] - 1) if isinstance(window, tuple) else None
    if name == "pos_embed" and module is backbone:  # of every patch
        grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
        return (grid[0], grid[1]) if isinstance(grid, (tuple, list)) else None
    return None


def resample(table: torch.Tensor, shape: torch.Size, aspect: float = 1.0, grids: Grids | None = None) -> torch.Tensor:
    """A parameter whose shape depends on the image size, for another image size.

    Each axis that differs is resized by linear interpolation. If it lists the positions of a grid, row by row, it is
    resized as that grid; entries of class tokens come before the grid in position embeddings (1, N, C), and after it in
    tables of relative positions (N, heads), as in timm. Otherwise it is one row of positions.

    Args:
        table: A table of any shape.
        shape: Shape of the result, with as many axes.
        aspect: Height of the image divided by its width.
        grids: Heights and widths of the old and the new grid, if they are known. None: the squares, or rectangles of
            that aspect, with as many entries as the table.

    Raises:
        UserError: If a table could list two different grids.
    """
    x = table.detach().float()
    changed = [axis for axis, (length, wanted) in enumerate(zip(table.shape, shape, strict=True)) if length != wanted]
    is_map = table.ndim > 2 and len(changed) > 1  # two axes make up the grid
    for axis in changed:
        length, wanted = table.shape[axis], shape[axis]
        x = x.movedim(axis, -1)
        rest = x.shape[:-1]
        embeds = table.ndim == 3 and axis == 1
        extras = range(6) if embeds else (0, 3) if table.ndim == 2 and axis == 0 else (0,)
        found = None if is_map else _match(length, wanted, grids) or _guess_grids(length, wanted, extras, aspect)
        if found is None:
            x = F.interpolate(x.reshape(1, -1, length), size=wanted, mode="linear", align_corners=False)
        else:
            extra, old, new = found
            kept, positions = (
                x.split((extra, length - extra), -1) if embeds else x.split((length - extra, extra), -1)[::-1]
            )
            grid = positions.reshape(1, -1, *old)
            grid = F.interpolate(grid, size=new, mode="bilinear", align_corners=False, antialias=True)
            parts = [kept, grid.reshape(*rest, -1)]
            x = torch.cat(parts if embeds else parts[::-1], -1)
        x = x.reshape(*rest, wanted).movedim(-1, axis)
    return x.to(table.dtype).contiguous()


def _match(length: int, wanted: int, grids: Grids | None) -> tuple[int, Size, Size] | None:
    """How many entries belong to class tokens if a table lists these grids; None if it does not."""
    if grids is None:
        return None
    old, new = grids
    extra = length - old[0] * old[1]
    return (extra, old, new) if 0 <= extra == wanted - new[0] * new[1] else None


def _guess_grids(length: int, wanted: int, extras: Iterable[int], aspect: float) -> tuple[int, Size, Size] | None:
    """The last resort: how many entries belong to class tokens, and the grids that the others can list."""
    found = [
        (extra, old, new)
        for extra in extras
        if (old := _grid(length - extra, aspect)) and (new := _grid(wanted - extra, aspect))
    ]
    if len(found) > 1:
        raise UserError(
            f"a position table of {length} entries may list a grid of {found[0][1]} or of {found[1][1]}; give an "
            "img_size for which this is unambiguous"
        )
    return found[0] if found else None


def _grid(positions: int, aspect: float) -> tuple[int, int] | None:
    """Height and width of a grid of this number of (relative) positions; None if there is none of this aspect."""
    height = math.sqrt(max(positions, 0) * aspect)
    rows = round(height)
    relative = round((height + 1) / 2)  # from -(h - 1) to h - 1
    for grid in (rows, round(rows / aspect)), (2 * relative - 1, 2 * round(relative / aspect) - 1):
        if grid[0] * grid[1] == positions > 0:
            return grid
    return None
