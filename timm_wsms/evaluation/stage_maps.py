"""What each stage's map says for a class, and where: heat maps a stage."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.evaluation.mode import evaluating
from timm_wsms.layouts import Layout, to_map
from timm_wsms.multi_stage import MultiStageNet
from timm_wsms.network import WsmsNet


def integrated_stages(model: nn.Module) -> WsmsNet:
    """The model itself, if it is a network whose stages' maps are integrated into one.

    Raises:
        UserError: It is not: a plain backbone, a network of one stage, or one that averages its stages' predictions.
    """
    if isinstance(model, WsmsNet) and model.integration is not None:
        return model
    if isinstance(model, MultiStageNet) and len(model.stages):
        raise UserError(
            "this network averages its stages' predictions and has no integrated map, so its stages cannot be analysed "
            'this way; give a network with fusion="concat"'
        )
    raise UserError("only a network of several stages can be analysed by stage; give a wsms_ or ms_ model")


def stage_heat_maps(
    model: nn.Module, images: torch.Tensor, classes: torch.Tensor | Sequence[int] | None = None
) -> torch.Tensor:
    """How much each place of each stage's map speaks for a class, in units of its logit.

    The gradient of the class's logit with respect to the map f_s that stage s gives to the integration layer, times the
    map, summed over channels (HiResCAM; Draelos and Carin 2020). No ReLU follows: a negative value speaks against the
    class. In eval mode, behind a convolution, batch norm, ReLU, average pooling and a linear classifier the logit is
    linear in the maps as long as no ReLU switches, so all stages' values at all places sum to the logit less what
    biases alone give; that makes stages comparable. With `residual`, f_1 counts on both of its ways, straight on and
    through the integration layer. Class tokens have no place and are left out.

    For a plain timm model the map is that of `forward_features`, and with average pooling and a linear classifier this
    is the class activation map of Zhou et al. 2016.

    Args:
        model: A timm model; its mode is restored and its gradients are left alone.
        images: (B, C, H, W), normalized, on the model's device.
        classes: A class for each image, (B,); None: those that the model predicts.

    Returns:
        (B, S, h, w), stage 1 first; S = 1 for a plain model. Float32.

    Raises:
        UserError: The stages have no integrated map, or a plain model gives no feature map.
    """
    network: Any = model
    several = isinstance(model, MultiStageNet) and len(model.stages) > 0
    if several:
        integrated_stages(model)
    with evaluating(model):
        features, maps = network.stage_maps(images) if several else (network.forward_features(images), [])
        with torch.enable_grad():
            features, maps = _leaf(features), [_leaf(stage) for stage in maps]
            merged = network.merged(features, network.integration(maps)) if several else features
            logits = network.forward_head(merged)
            chosen = logits.argmax(1) if classes is None else torch.as_tensor(classes, device=logits.device)
            score = logits.gather(1, chosen[:, None]).sum()
            straight, *gradients = torch.autograd.grad(score, [_last(features), *maps], allow_unused=True)
    heat = [(gradient * stage).sum(1) for gradient, stage in zip(gradients, maps, strict=True)]  # (B, h, w) each
    if straight is not None and not getattr(model, "map_apart", False):
        own = _to_map(model, straight * _last(features), images).sum(1)
        heat[:1] = [heat[0] + own if heat else own]
    return torch.stack(heat, 1).detach().float()


def _leaf(x: Any) -> Any:
    """The same values, for gradients to end at; of several features each."""
    if isinstance(x, (list, tuple)):
        return [_leaf(one) for one in x]
    return x.detach().requires_grad_()


def _last(features: Any) -> torch.Tensor:
    return features[-1] if isinstance(features, list) else features


def _to_map(model: Any, features: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Features → (B, C, h, w)."""
    if isinstance(model, WsmsNet):
        return to_map(features, images, model.reduction, model.layout)
    fmt = getattr(model, "output_fmt", "NCHW")
    layout: Layout = "NHWC" if str(getattr(fmt, "value", fmt)).upper() == "NHWC" else "NCHW"
    if features.ndim != 4:
        raise UserError(
            "this model gives tokens, no feature map; for heat maps give its wsms_ form or a model with maps"
        )
    return to_map(features, images, 1, layout)
