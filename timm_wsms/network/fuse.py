"""The form of a network for inference: batch normalization folded into the convolutions it follows."""

import copy
import logging
from collections import defaultdict
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame, FrozenBatchNormAct2d, Linear, SyncBatchNormAct
from timm.utils import reparameterize_model
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d

from timm_wsms.errors import UserError
from timm_wsms.network.base import MultiStageNet
from timm_wsms.network.checkpointing_bn import update_statistics_once
from timm_wsms.network.integration import PointwiseConv2d

_logger = logging.getLogger(__name__)

# Told by what they compute, not by their class: a subclass with a forward of its own (weight standardization,
# mixtures of experts, split batches) is something else.
AFFINE = {kind.forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv2dSame, PointwiseConv2d, nn.Linear, Linear)}
BATCH_NORM = {
    kind.forward  # type: ignore[attr-defined]
    for kind in (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d, SyncBatchNormAct)
} | {FrozenBatchNorm2d.forward, FrozenBatchNormAct2d.forward}
REPARAMETERIZED = ("fuse", "reparameterize", "switch_to_deploy")  # what timm.utils.reparameterize_model looks for


def fuse(model: Any, images: torch.Tensor | None = None) -> Any:
    """A copy of a network for inference, with fewer layers and the same outputs up to rounding.

    timm's re-parameterizable blocks (RepVGG, MobileOne, LeViT …) take their deployed form; then every batch norm that
    reads the output of one convolution or linear layer, which nothing else reads, is folded into that layer's weights.
    What else a norm does, such as timm's activation in `BatchNormAct2d`, stays. Norms that follow an addition, a
    concatenation or a pooling stay too. One forward pass shows which layer reads which output, since neither names
    nor the order of modules tell, and torch.fx can trace neither a `WsmsNet` nor many of timm's backbones.

    The stages of a `WsmsNet` share convolutions but not norms, so in the copy each has weights of its own: it is faster
    but needs more memory. It cannot be trained, and its state dict does not fit the original network: save the network
    itself, not the copy, and call `to_backbone` on the network too.
    Fuse in float32 and convert to bfloat16 afterwards: the other way round, the weights are rounded twice.

    Args:
        model: A `WsmsNet`, or any of timm's networks. Not modified.
        images: (B, C, H, W), a batch that the network accepts; its values do not matter. None: one black image of the
            size in the network's `pretrained_cfg`.

    Returns:
        A network of the same class in eval mode, on the same device, without gradients. If there is nothing to change,
        it is a plain copy, and a warning says so.

    Raises:
        UserError: If the network does not run on the images.
    """
    fused = copy.deepcopy(model).eval()
    update_statistics_once(fused, enable=False)  # its hooks on norms are for training
    networks = [part for part in fused.modules() if isinstance(part, MultiStageNet)]
    for network in networks:
        network.forget_sharing()  # each stage folds its own norms into weights of its own
    reparameterized = _reparameterize(fused)
    fused.requires_grad_(False)
    pairs = _find_pairs(fused, _images(fused) if images is None else images)
    for layer, norm in pairs.items():
        _fold(norm, layer)
    rests = {norm: _without_normalization(norm) for norm in pairs.values()}
    for parent in fused.modules():
        for name, child in parent._modules.items():
            if child in rests:
                parent._modules[name] = rests[child]
    if not pairs and not reparameterized:
        _logger.warning(f"fuse found no batch norm to fold in {type(model).__name__}: nothing was changed")
    for network in networks:
        network.record_sharing()  # of what was not folded
    return fused.eval()


def _reparameterize(model: nn.Module) -> bool:
    """Let timm deploy its re-parameterizable blocks; returns whether there were any."""
    found = [part for part in model.modules() if any(hasattr(part, method) for method in REPARAMETERIZED)]
    for module in {inner for part in found for inner in part.modules()}:
        module._parameters = copy.deepcopy(module._parameters)  # some are written in place: not to stages that share
    reference = next(model.parameters(), torch.empty(0))
    if found:
        reparameterize_model(model, inplace=True)
        model.to(reference.device, reference.dtype)  # some blocks come back in float32 on the CPU
    return bool(found)


def _images(model: Any) -> torch.Tensor:
    cfg = getattr(model, "pretrained_cfg", None)
    if not cfg or not cfg.get("input_size"):
        raise UserError("the network does not say which image size it takes; give fuse a batch of images")
    channels, height, width = cfg["input_size"]
    reference = next(model.parameters())
    shape = (1, getattr(model, "in_chans", channels), height, width)
    return torch.zeros(shape, device=reference.device, dtype=reference.dtype)


@torch.no_grad()
def _find_pairs(model: Any, images: torch.Tensor) -> dict[nn.Module, nn.Module]:
    """Layer → the norm that is the only reader of its output and reads nothing else."""
    flow = _Flow()
    handles = []
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks:  # somebody watches or changes its tensors
            continue
        if type(module).forward in AFFINE and module._parameters.get("weight") is not None:  # not a parametrized one
            handles.append(module.register_forward_hook(flow.leave_layer))
        elif type(module).forward in BATCH_NORM and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(flow.enter_norm))
            handles.append(module.register_forward_hook(flow.leave_norm))
    try:
        with flow:
            for call in (model, getattr(model, "forward_intermediates", None)):
                if call is not None:
                    flow.read(call(images))
                    flow.outputs.clear()
    except RuntimeError as error:
        raise UserError(
            f"the network does not run on images of {(*images.shape,)} ({error}); give fuse others"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return {
        layer: norm
        for layer, readers in flow.readers.items()
        for norm in readers
        if norm is not None and len(readers) == 1 and flow.sources[norm] == {layer}
    }


class _Flow(TorchDispatchMode):
    """Records which norms, and what else, read the outputs of which layers.

    Attributes:
        outputs: id of a tensor → the tensor, kept so that no other gets its id, and the layer that it came from.
        readers: Layer → the norms that read one of its outputs; None stands for anything else.
        sources: Norm → the layers whose outputs it read; None stands for anything else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, tuple[torch.Tensor, nn.Module]] = {}
        self.readers: dict[nn.Module, set[nn.Module | None]] = defaultdict(set)
        self.sources: dict[nn.Module, set[nn.Module | None]] = defaultdict(set)
        self.norm: nn.Module | None = None  # the one that is running

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.read((args, kwargs))
        return func(*args, **kwargs or {})

    def read(self, values: Any) -> None:
        """Note that the running norm, or something else, reads these tensors."""
        for value in tree_leaves(values):
            if id(value) in self.outputs:
                self.readers[self.outputs[id(value)][1]].add(self.norm)

    def leave_layer(self, layer: Any, _args: Any, output: torch.Tensor) -> None:
        if output.ndim == layer.weight.ndim:  # else its channels are not axis 1, which a norm works on
            self.outputs[id(output)] = (output, layer)

    def enter_norm(self, norm: nn.Module, args: Any) -> None:
        _, layer = self.outputs.get(id(args[0]), (None, None))
        self.sources[norm].add(layer)
        self.norm = norm

    def leave_norm(self, _norm: nn.Module, _args: Any, _output: Any) -> None:
        self.norm = None


def _fold(norm: Any, layer: Any) -> None:
    statistics = (norm.running_mean, norm.running_var, norm.eps)
    weight, bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics, norm.weight, norm.bias)
    layer.weight, layer.bias = weight, bias


def _without_normalization(norm: nn.Module) -> nn.Module:
    """What a norm does besides normalization: timm's norms may include a dropout and an activation."""
    rest = [part for part in norm.children() if not isinstance(part, nn.Identity)]
    return rest[0] if len(rest) == 1 else nn.Sequential(*rest) if rest else nn.Identity()
