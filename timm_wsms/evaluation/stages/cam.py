"""What each stage's map says for a class, and where: heat maps per stage."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.network.backbone_traits import feature_layout
from timm_wsms.network.base import MultiStageNet
from timm_wsms.network.layouts import last_feature, to_map
from timm_wsms.network.mean_net import WsmsMeanNet
from timm_wsms.utils import eval_mode


def several_stages(model: nn.Module) -> MultiStageNet:
    """The model itself, if it has several stages.

    Raises:
        UserError: It does not.
    """
    if isinstance(model, MultiStageNet) and len(model.stages):
        return model
    raise UserError("only a network of several stages can be analyzed by stage; give a wsms_ or ms_ model")


def stage_heat_maps(
    model: nn.Module, images: torch.Tensor, classes: torch.Tensor | Sequence[int] | None = None
) -> torch.Tensor:
    """How much each place of each stage's map speaks for a class, in units of its logit.

    The gradient of the class's logit with respect to the map f_s that stage s gives to the integration layer, times the
    map, summed over channels (HiResCAM; Draelos and Carin 2020). No ReLU follows: a negative value speaks against the
    class. In eval mode, after a convolution, batch norm, ReLU, average pooling and a linear classifier, the logit is
    linear in the maps as long as no ReLU switches, so all stages' values at all places sum to the logit minus what
    biases alone give; that makes stages comparable. With `residual`, f_1 counts on both of its paths, direct and
    through the integration layer. Class tokens have no place and are left out.

    With `fusion="mean"` f_s are the features of stage s, and each place's value is spread over the places of stage 1's
    map that it covers, so that sums stay. For a plain timm model the map is that of `forward_features`, and with
    average pooling and a linear classifier this is the class activation map of Zhou et al. 2016.

    Args:
        model: A timm model; its mode is restored and its gradients are left alone.
        images: (B, C, H, W), normalized, on the model's device.
        classes: A class for each image, (B,); None for the predicted ones.

    Returns:
        (B, S, h, w), stage 1 first; S = 1 for a plain model. Float32.

    Raises:
        UserError: A plain model, or one with `fusion="mean"`, returns tokens, not a feature map.
    """
    several = isinstance(model, MultiStageNet) and len(model.stages) > 0
    maps_of = _of_features if not several else _of_averaged if isinstance(model, WsmsMeanNet) else _of_integrated
    with eval_mode(model):
        return torch.stack(maps_of(model, images, classes), 1).detach().float()


def _of_integrated(model: Any, images: torch.Tensor, classes: Any) -> list[torch.Tensor]:
    features, maps = model.stage_maps(images)
    with torch.enable_grad():
        features, maps = _leaf(features), [_leaf(stage) for stage in maps]
        logits = model.forward_head(model.merged(features, model.integration(maps)))
    straight, *gradients = _gradients(logits, classes, [last_feature(features), *maps])
    heat = [(gradient * stage).sum(1) for gradient, stage in zip(gradients, maps, strict=True)]  # (B, h, w) each
    if straight is not None and not model.map_not_in_features:
        own = to_map(straight * last_feature(features), images, model.reduction, model.layout)
        heat[0] = heat[0] + own.sum(1)
    return heat


def _of_averaged(model: Any, images: torch.Tensor, classes: Any) -> list[torch.Tensor]:
    several = model.stage_features(images)
    with torch.enable_grad():
        several = [_leaf(features) for features in several]
        logits = torch.stack(model.stage_heads(several)).mean(0)
    ends = [last_feature(features) for features in several]
    gradients = _gradients(logits, classes, ends)
    heat = [
        _to_map(part, gradient * end, images).sum(1)
        for part, gradient, end in zip(model.backbones(), gradients, ends, strict=True)
    ]
    return [spread(own, heat[0].shape[-2:]) for own in heat]


def _of_features(model: Any, images: torch.Tensor, classes: Any) -> list[torch.Tensor]:
    features = model.forward_features(images)
    with torch.enable_grad():
        features = _leaf(features)
        logits = model.forward_head(features)
    (gradient,) = _gradients(logits, classes, [last_feature(features)])
    return [_to_map(model, gradient * last_feature(features), images).sum(1)]


def spread(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(…, h, w) → (…, *size): each place's value goes to the places of the other grid that it covers, by area."""
    rows, columns = (_shares(old, new).to(x) for old, new in zip(x.shape[-2:], size, strict=True))
    return rows @ x @ columns.T


def _shares(old: int, new: int) -> torch.Tensor:
    """How much of each of `old` equal parts of a line lies in each of `new` equal parts of it, (new, old)."""
    low = torch.arange(new, dtype=torch.float64)[:, None] * old / new
    own = torch.arange(old, dtype=torch.float64)
    return (torch.minimum(low + old / new, own + 1) - torch.maximum(low, own)).clamp(min=0)


@torch.enable_grad()
def _gradients(logits: torch.Tensor, classes: Any, inputs: list[torch.Tensor]) -> tuple[Any, ...]:
    """Gradients of each image's chosen, or else largest, logit; None for an input that it does not depend on."""
    chosen = logits.argmax(1) if classes is None else torch.as_tensor(classes, device=logits.device)
    score = logits.gather(1, chosen[:, None]).sum()
    return torch.autograd.grad(score, inputs, allow_unused=True)


def _leaf(x: Any) -> Any:
    """The same values, detached, as leaves for gradients; for several features, each of them."""
    if isinstance(x, (list, tuple)):
        return [_leaf(one) for one in x]
    return x.detach().requires_grad_()


def _to_map(model: Any, features: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Features of a plain model → (B, C, h, w)."""
    if features.ndim != 4:
        raise UserError(
            'this model returns tokens, not a feature map; for heat maps use its wsms_ form with fusion="concat", or a '
            "model with maps"
        )
    return to_map(features, images, 1, feature_layout(model))
