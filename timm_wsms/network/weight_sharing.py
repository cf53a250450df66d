"""What the stages of a WSMS-Net share, and how (paper, Section 3.1 and Fig. 2).

A stage is a copy of the backbone's *structure*: each of its modules holds the same parameters as the backbone's module.
`ties.py` keeps it so, whatever is done to them later. Every stage has norms of its own, without any switching at run
time.
"""

import copy
from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from timm.layers import (
    EvoNorm2dS0,
    EvoNorm2dS1,
    EvoNorm2dS2,
    FilterResponseNormAct2d,
    FilterResponseNormTlu2d,
    RmsNorm,
    RmsNorm2d,
    RmsNorm2dFp32,
    RmsNormFp32,
    SimpleNorm,
    SimpleNorm2d,
    SimpleNorm2dFp32,
    SimpleNormFp32,
)
from torch import nn
from torch.overrides import TorchFunctionMode

from timm_wsms.network.backbone_traits import TimmModel
from timm_wsms.network.position_tables import find_grids, resample

UnsharedNorms = Literal["batch", "statistics", "all", "none"]

LAYER_NORMS = (  # and their subclasses: timm's LayerNorm2d, GroupNormAct …
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm),
    *(RmsNorm, RmsNorm2d, RmsNormFp32, RmsNorm2dFp32, SimpleNorm, SimpleNorm2d, SimpleNormFp32, SimpleNorm2dFp32),
    *(EvoNorm2dS0, EvoNorm2dS1, EvoNorm2dS2, FilterResponseNormAct2d, FilterResponseNormTlu2d),
)


def has_own_parameters(module: nn.Module, unshared_norms: UnsharedNorms) -> bool:
    """Whether every stage has parameters of its own for this module (paper, Section 3.1)."""
    if unshared_norms in ("none", "statistics"):
        return False
    return keeps_statistics(module) or (unshared_norms == "all" and isinstance(module, LAYER_NORMS))


def has_own_buffers(module: nn.Module, unshared_norms: UnsharedNorms) -> bool:
    """Whether every stage has its own buffers, that is, running statistics, for this module."""
    return unshared_norms != "none" and keeps_statistics(module)


def keeps_statistics(module: nn.Module) -> bool:
    """Whether it is a batch normalization, whatever its class."""
    return "running_var" in module._buffers


def copy_sharing(backbone: TimmModel, unshared_norms: UnsharedNorms) -> TimmModel:
    """A copy of the backbone that shares every parameter and buffer except those of the unshared norms."""
    memo: dict[int, Any] = {}  # deepcopy does not copy the objects that its memo already holds
    for module in backbone.modules():
        own_parameters, own_buffers = (has(module, unshared_norms) for has in (has_own_parameters, has_own_buffers))
        # Most are. With deepcopy alone, creating wsms_convnext_tiny takes 1.35 times its backbone's time, not 1.0.
        if _is_simple(module):
            memo[id(module)] = _copy_simple(module, own_parameters, own_buffers)
            continue
        for tensors, own in ((module._parameters, own_parameters), (module._buffers, own_buffers)):
            if not own:
                memo |= {id(tensor): tensor for tensor in tensors.values() if tensor is not None}
    return copy.deepcopy(backbone, memo)


def _is_simple(module: nn.Module) -> bool:
    """Whether it is one of PyTorch's own layers, without parts, hooks, or anything else that leads elsewhere."""
    if module._modules or not type(module).__module__.startswith("torch.nn.modules."):
        return False
    for name, value in vars(module).items():
        if isinstance(value, (dict, set)) and value and name not in ("_parameters", "_buffers"):
            return False
        if isinstance(value, list) and not all(isinstance(item, (int, float)) for item in value):
            return False
    return True


def _copy_simple(module: nn.Module, own_parameters: bool, own_buffers: bool) -> nn.Module:
    """A copy of a simple module, with tensors of its own or with the same ones."""
    copied = object.__new__(type(module))
    for name, value in vars(module).items():
        vars(copied)[name] = value.copy() if isinstance(value, (dict, set, list)) else value
    if own_parameters:
        copied._parameters = copy.deepcopy(module._parameters)
    if own_buffers:
        copied._buffers = {name: _copy_buffer(tensor) for name, tensor in module._buffers.items()}
    return copied


def _copy_buffer(tensor: Any) -> Any:
    """A deep copy. For a plain tensor, deepcopy takes many times as long, and every norm has three."""
    if type(tensor) is torch.Tensor and not tensor.requires_grad and not vars(tensor):
        return tensor.clone()
    return copy.deepcopy(tensor)


class SkipInit(TorchFunctionMode):
    """Builds modules on the meta device without initializing their tensors, which have no values there.

    PyTorch computes in Python what such an operation would return: without this, creating
    wsms_swin_tiny_patch4_window7_224 takes more than twice its backbone's time.
    """

    OPERATIONS = (
        *("normal_", "uniform_", "constant_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_"),
        *("xavier_normal_", "xavier_uniform_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_"),
    )

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")  # so torch.nn.init names it
        if getattr(func, "__name__", "") in self.OPERATIONS and tensor.is_meta:
            return tensor
        return func(*args, **kwargs)


def build_sharing(
    build: Callable[[], TimmModel], backbone: TimmModel, unshared_norms: UnsharedNorms, aspect: float = 1.0
) -> TimmModel:
    """The backbone for another image size, sharing every parameter except unshared norms' and position tables.

    Args:
        build: Builds the backbone for the other image size.
        backbone: The one that it shares with. The norms that are not shared are copied from it, and the parameters
            whose shape depends on the image size are resampled from it.
        unshared_norms: As in `WsmsNet`.
        aspect: Height of the image divided by its width.
    """
    with torch.device("meta"), SkipInit():  # nothing is allocated that is about to be replaced
        other = build()
    owners = dict(backbone.named_modules())
    device = next(backbone.parameters()).device
    for path, module in other.named_modules():
        owner = owners[path]
        own_parameters, own_buffers = (has(owner, unshared_norms) for has in (has_own_parameters, has_own_buffers))
        for name, placeholder in module._parameters.items():
            if placeholder is None:
                continue
            tensor = owner._parameters[name]
            if tensor.shape != placeholder.shape:
                grids = find_grids(name, (backbone, owner), (other, module))
                values = resample(tensor, placeholder.shape, aspect, grids)
                tensor = nn.Parameter(values, requires_grad=tensor.requires_grad)
            module._parameters[name] = copy.deepcopy(tensor) if own_parameters else tensor
        for name, placeholder in module._buffers.items():
            if placeholder is None:
                continue
            if hasattr(module, "init_non_persistent_buffers"):  # filled below
                module._buffers[name] = torch.empty_like(placeholder, device=device)
            else:
                module._buffers[name] = copy.deepcopy(owner._buffers[name]) if own_buffers else owner._buffers[name]
    for module in other.modules():
        if hasattr(module, "init_non_persistent_buffers"):  # timm's way to make index tables and the like on a device
            module.init_non_persistent_buffers()
    return other


def share_new(part: nn.Module, backbone: TimmModel, kept: Collection[nn.Module], unshared_norms: UnsharedNorms) -> None:
    """After the same change to both: let the new modules hold the backbone's tensors, except for norms.

    Args:
        part: A copy of the backbone's structure.
        backbone: Has the new modules too.
        kept: Modules that stay as they are.
        unshared_norms: As in `WsmsNet`.
    """
    for path, module in part.named_modules():
        if module in kept:
            continue
        owner = backbone.get_submodule(path)
        if not has_own_parameters(module, unshared_norms):
            module._parameters.update(owner._parameters)
        if not has_own_buffers(module, unshared_norms):
            module._buffers.update(owner._buffers)
