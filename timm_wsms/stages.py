"""Cuts a timm backbone into the stages of a WSMS-Net and says what they share (paper, Section 3.1 and Fig. 2).

Stage 1 is the backbone itself. Stage s sees the image at 1 / 2^(s-1) of its size and runs the backbone's blocks up to
reduction R / 2^(s-1), so all stages end in maps of the same height and width.

A stage is a copy of the backbone's *structure*: each of its modules holds the very dictionary of parameters that the
backbone's module holds. So a shared tensor exists once, whatever is done to it later (`.to`, `load_state_dict`, `EMA`),
and every stage has norms of its own without any switching at run time.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.layers import (
    BatchNormAct2d,
    EvoNorm2dS0,
    EvoNorm2dS1,
    EvoNorm2dS2,
    FilterResponseNormAct2d,
    FilterResponseNormTlu2d,
    GroupNormAct,
    RmsNorm,
    RmsNorm2d,
    RmsNorm2dFp32,
    RmsNormFp32,
    SimpleNorm,
    SimpleNorm2d,
    SimpleNorm2dFp32,
    SimpleNormFp32,
)
from timm.models.densenet import DenseNet
from timm.models.dpn import DPN
from timm.models.nfnet import NormFreeNet
from timm.models.regnet import RegNet
from timm.models.resnetv2 import ResNetV2
from timm.models.xception_aligned import XceptionAligned
from torch import nn

from timm_wsms.backbones.cifar_densenet import CifarDenseNet

UnsharedNorms = Literal["batch", "all", "none"]
TimmModel = Any  # an nn.Module with timm's interface, of which the type nn.Module says nothing

# Where a pre-activation backbone ends in norm and activation. A stage that ends earlier needs an end like it.
PREACTIVATION_END: dict[type[nn.Module], str] = {
    CifarDenseNet: "features.norm",
    DenseNet: "features.norm5",
    DPN: "features.conv5_bn_ac",
    NormFreeNet: "final_act",
    RegNet: "final_conv",
    ResNetV2: "norm",
    XceptionAligned: "act",
}
LAYER_NORMS = (  # and their subclasses: timm's LayerNorm2d, GroupNormAct …
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm),
    *(RmsNorm, RmsNorm2d, RmsNormFp32, RmsNorm2dFp32, SimpleNorm, SimpleNorm2d, SimpleNormFp32, SimpleNorm2dFp32),
    *(EvoNorm2dS0, EvoNorm2dS1, EvoNorm2dS2, FilterResponseNormAct2d, FilterResponseNormTlu2d),
)


@dataclass(frozen=True)
class Level:
    """One resolution of a backbone: the last of its feature maps that has it.

    Attributes:
        index: Position in the backbone's `feature_info`.
        channels: Channels of the map.
        reduction: Side of the image divided by the side of the map.
    """

    index: int
    channels: int
    reduction: int


def levels(backbone: TimmModel) -> list[Level]:
    """The backbone's levels, deepest first: reductions R, R / 2, R / 4 … as long as each is half of the one before.

    Args:
        backbone: A timm model with `feature_info`.

    Returns:
        One level for a backbone that keeps one resolution throughout (a ViT).
    """
    info = [backbone.feature_info[i] for i in range(len(backbone.feature_info))]
    last = {entry["reduction"]: Level(i, entry["num_chs"], entry["reduction"]) for i, entry in enumerate(info)}
    found = [last[info[-1]["reduction"]]]
    while found[-1].reduction % 2 == 0 and found[-1].reduction // 2 in last:
        found.append(last[found[-1].reduction // 2])
    return found


def is_unshared(module: nn.Module, unshared_norms: UnsharedNorms) -> bool:
    """Whether every stage has parameters and statistics of its own for this module (paper, Section 3.1)."""
    if unshared_norms == "none":
        return False
    keeps_statistics = "running_var" in module._buffers  # batch normalization, whatever its class
    return keeps_statistics or (unshared_norms == "all" and isinstance(module, LAYER_NORMS))


def copy_sharing(backbone: TimmModel, unshared_norms: UnsharedNorms) -> TimmModel:
    """A copy of the backbone that shares every parameter and buffer but those of the unshared norms."""
    memo: dict[int, Any] = {}
    for module in backbone.modules():
        if not is_unshared(module, unshared_norms):
            memo |= {id(module._parameters): module._parameters, id(module._buffers): module._buffers}
    return copy.deepcopy(backbone, memo)  # deepcopy leaves as they are the objects that its memo already holds


def shared_keys(stages: nn.Module, backbone: TimmModel) -> Iterator[tuple[str, str]]:
    """(key in `stages`, key in `backbone`) of every tensor that the two have in common."""
    owners = {id(tensor): key for key, tensor in _named_tensors(backbone)}
    for key, tensor in _named_tensors(stages):
        if id(tensor) in owners:
            yield key, owners[id(tensor)]


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def preactivation_end(backbone: TimmModel) -> nn.Module | None:
    """The norm–activation, or the activation alone, that closes a pre-activation backbone; None for any other."""
    path = next((path for kind, path in PREACTIVATION_END.items() if isinstance(backbone, kind)), None)
    if path is None:
        return None
    end = backbone.get_submodule(path)
    end = getattr(end, "bn", end)  # DPN wraps it
    norms = (nn.BatchNorm2d, nn.GroupNorm)
    is_end = isinstance(end, norms) or not any(True for _ in end.parameters())  # not RegNet's convolution
    return end if is_end and not isinstance(end, nn.Identity) else None


def end_like(end: Any, channels: int) -> nn.Module:
    """A fresh norm–activation (or activation) of the kind of `end`, for another number of channels."""
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


class Stage(nn.Module):
    """Stage 2 or deeper: the blocks of a backbone up to one of its levels.

    Args:
        backbone: The copy of the backbone that this stage may cut; its deeper blocks and its head are removed.
        level: Where it is cut.
    """

    def __init__(self, backbone: TimmModel, level: Level):
        super().__init__()
        end = preactivation_end(backbone)
        backbone.prune_intermediate_layers([level.index])
        self.backbone = backbone
        self.index = level.index
        self.end = end_like(end, level.channels) if end is not None else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) → (B, channels, H / reduction, W / reduction)."""
        maps = self.backbone.forward_intermediates(x, indices=[self.index], stop_early=True, intermediates_only=True)
        return self.end(maps[0])
