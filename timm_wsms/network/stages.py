"""Cuts a timm backbone into the stages of a WSMS-Net (paper, Section 3.1 and Fig. 2).

Stage 1 is the backbone itself. Stage s sees the image at 1 / 2^(s-1) of its size and runs the backbone's blocks up to
reduction R / 2^(s-1), so all stages end in maps of the same height and width. A backbone that keeps one resolution
(ViT, mixers) cannot be cut like this: there, stage s runs the first S - s + 1 of S equal parts of the depth, and its
map is resized.
"""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import BatchNormAct2d, GroupNormAct
from timm.models import register_notrace_module
from torch import nn

from timm_wsms.network.backbone_traits import Size, TimmModel, traits_of
from timm_wsms.network.image_sizes import build_part, size_arguments
from timm_wsms.network.layouts import fit, pad_to_multiple
from timm_wsms.network.unused_layers import remove_empty_classifier, remove_unused
from timm_wsms.network.weight_sharing import UnsharedNorms


@dataclass(frozen=True)
class Level:
    """Where a stage ends: for stage 1 at the last of the backbone's maps, for the others earlier.

    Attributes:
        index: Position in the backbone's `feature_info`.
        channels: Channels of the map.
        reduction: Side of the image divided by the side of the map.
    """

    index: int
    channels: int
    reduction: int


def levels_info(backbone: TimmModel) -> list[dict[str, Any]]:
    """timm's `feature_info` of the backbone as a new list, whether timm has it as a list or as an object.

    The names of modules are those in the network, where the backbone is stage 1.
    """
    entries = [dict(backbone.feature_info[i]) for i in range(len(backbone.feature_info))]
    return [entry | ({"module": f"backbone.{entry['module']}"} if entry.get("module") else {}) for entry in entries]


def levels(backbone: TimmModel) -> list[Level]:
    """The backbone's levels, deepest first: reductions R, R / 2, R / 4 … as long as each is half of the one before.

    Args:
        backbone: A timm model with `feature_info`.

    Returns:
        One level for a backbone that keeps one resolution throughout (a ViT).
    """
    info = levels_info(backbone)
    last = {entry["reduction"]: Level(i, entry["num_chs"], entry["reduction"]) for i, entry in enumerate(info)}
    found = [last[info[-1]["reduction"]]]
    while found[-1].reduction % 2 == 0 and found[-1].reduction // 2 in last:
        found.append(last[found[-1].reduction // 2])
    return found


def is_flat(backbone: TimmModel) -> bool:
    """Whether the backbone keeps one resolution throughout."""
    return len({entry["reduction"] for entry in levels_info(backbone)}) == 1


def parts(backbone: TimmModel, stages: int) -> list[Level]:
    """The ends of the stages of a backbone that keeps one resolution: all of its depth, (S - 1) / S of it …"""
    depth = len(backbone.feature_info)
    ends = [-(-depth * (stages - number) // stages) - 1 for number in range(stages)]
    info = [backbone.feature_info[index] for index in ends]
    return [
        Level(index, entry.get("num_chs_norm", entry["num_chs"]), entry["reduction"])
        for index, entry in zip(ends, info, strict=True)
    ]


def preactivation_end(backbone: TimmModel) -> nn.Module | None:
    """The norm–activation, or the activation alone, that closes a pre-activation backbone; None for any other."""
    path = traits_of(backbone).preactivation_end
    if path is None:
        return None
    end = backbone.get_submodule(path)
    end = getattr(end, "bn", end)  # DPN wraps it
    norms = (nn.BatchNorm2d, nn.GroupNorm)
    is_end = isinstance(end, norms) or not any(True for _ in end.parameters())  # not RegNet's convolution
    return end if is_end and not isinstance(end, nn.Identity) else None


def end_like(end: Any, channels: int) -> nn.Module:
    """A new norm–activation (or activation) of the same kind as `end`, for another number of channels."""
    new: Any
    if isinstance(end, nn.BatchNorm2d):
        momentum: Any = end.momentum
        new = BatchNormAct2d(channels, end.eps, momentum, device=end.weight.device, dtype=end.weight.dtype)
    elif isinstance(end, nn.GroupNorm):
        new = GroupNormAct(channels, end.num_groups, end.eps, device=end.weight.device, dtype=end.weight.dtype)
    else:
        return copy.deepcopy(end)
    new.act = copy.deepcopy(end.act)
    return new


@register_notrace_module  # a node of its own to torch.fx: timm's forward_intermediates cannot be traced everywhere
class Stage(nn.Module):
    """Stage 2 or deeper: the blocks of a backbone up to one of its levels.

    Args:
        backbone: The copy of the backbone that this stage may cut; its deeper blocks and its head are removed.
        level: Where it is cut.
        multiple: The sides of the images that the backbone takes must be a multiple of N pixels …
        norm: Whether to apply the backbone's last norm at the end of every part of its depth.
        taps: Position of a map in stage 1 → that of the map of the same resolution in this stage.
        minimum: … and at least N pixels.
        factor: Size of its image divided by that of stage 1's.
    """

    def __init__(
        self,
        backbone: TimmModel,
        level: Level,
        multiple: int,
        norm: bool,
        taps: dict[int, int],
        minimum: int = 1,
        factor: float = 0.5,
    ):
        super().__init__()
        self.index, self.multiple, self.norm, self.taps, self.minimum = level.index, multiple, norm, taps, minimum
        self.factor = factor
        end = preactivation_end(backbone)
        self.channels = {tap: backbone.feature_info[tap]["num_chs"] for tap in taps.values()}
        self.channels[level.index] = level.channels
        backbone.prune_intermediate_layers([level.index], prune_norm=not norm)
        remove_empty_classifier(backbone)
        self.backbone = backbone
        self.end = end_like(end, level.channels) if end is not None else nn.Identity()

    def forward(self, image: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The image (B, in_chans, H, W) and stage 1's last map (B, C_1, h, w) → (B, channels, h, w)."""
        return self.maps(image, {max(self.taps): like})[0]

    def maps(self, image: torch.Tensor, like: dict[int, torch.Tensor]) -> list[torch.Tensor]:
        """Its maps at the resolution of some of stage 1's, all of which it must have.

        Args:
            image: (B, in_chans, H, W)
            like: Stage 1's maps (B, C_1, h, w), by their positions, in ascending order.
        """
        padded = self.pad(image)
        own = self.own_maps(padded, like)
        return [fit(own[position], other, padded, image) for position, other in like.items()]

    def pad(self, image: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) → the same with zeros at the right and the bottom, as the backbone takes it."""
        return pad_to_multiple(image, self.multiple, self.minimum)

    def own_maps(self, padded: torch.Tensor, positions: Collection[int]) -> dict[int, torch.Tensor]:
        """Its maps as they are, not yet resized to stage 1's, so that it need not wait for those.

        Args:
            padded: (B, in_chans, H, W), from `pad`.
            positions: Positions of stage 1's maps.
        """
        indices = sorted({self.taps[position] for position in positions})
        found = self.backbone.forward_intermediates(
            padded, indices=indices, norm=self.norm, stop_early=True, intermediates_only=True
        )
        if indices[-1] == self.index:
            found[-1] = self.end(found[-1])
        return {position: found[indices.index(self.taps[position])] for position in positions}

    def prune(self, positions: Collection[int]) -> None:
        """Keep only what the maps at these positions in stage 1 need."""
        self.taps = {position: tap for position, tap in self.taps.items() if position in positions}
        if max(self.taps.values()) < self.index:
            self.backbone.prune_intermediate_layers([max(self.taps.values())], prune_norm=not self.norm)
            remove_empty_classifier(self.backbone)
            self.end = nn.Identity()


def find_taps(backbone: TimmModel, level: Level, divisor: int) -> dict[int, int]:
    """For each of stage 1's maps that a stage has a counterpart of, the position of both in `feature_info`.

    The counterpart has the same resolution, since the stage's image is smaller; in a backbone of one resolution it
    is as far from the stage's end as stage 1's map is from its own.
    """
    reductions = [entry["reduction"] for entry in levels_info(backbone)]
    last = len(reductions) - 1
    if is_flat(backbone):
        return {position: position - last + level.index for position in range(last - level.index, last + 1)}
    deepest = {reduction: i for i, reduction in enumerate(reductions)}
    return {i: deepest[r // divisor] for i, r in enumerate(reductions) if r % divisor == 0 and r // divisor in deepest}


def make_stage(
    build_backbone: Callable[..., TimmModel],
    backbone: TimmModel,
    level: Level,
    divisor: int,
    img_size: int | Size | None,
    share_weights: bool,
    unshared_norms: UnsharedNorms,
) -> Stage:
    """Builds a stage for images of 1 / divisor of the size.

    Args:
        build_backbone: Returns the backbone; takes `img_size` if its parameters depend on the image size.
        backbone: Stage 1.
        level: Where the stage is cut.
        divisor: 2, 4 …
        img_size: Of stage 1's images, for a backbone of a fixed image size; None: its default.
        share_weights: As in `WsmsNet`.
        unshared_norms: As in `WsmsNet`.
    """
    flat = is_flat(backbone)
    traits = traits_of(backbone)
    multiple, minimum = traits.multiple_and_minimum(whole=False)
    multiple = level.reduction if flat else multiple
    arguments: dict[str, Any] = {}
    if not traits.takes_any_size:
        arguments = size_arguments(backbone, 1 / divisor, multiple, img_size)
        if arguments and traits.window_arguments:
            arguments |= traits.window_arguments(backbone, arguments["img_size"], divisor)
    part = build_part(build_backbone, backbone, arguments, share_weights, unshared_norms)
    taps = find_taps(backbone, level, divisor)
    stage = Stage(part, level, multiple, flat, taps, minimum, 1 / divisor)
    if traits.mixes_resolutions:
        remove_unused(stage, backbone, share_weights)
    return stage
