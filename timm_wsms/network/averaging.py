"""The average of the stages' maps, for code that asks a network of averaged logits for features.

The maps of the stages differ in height and width. Each is brought to stage 1's (bilinear) and then shifted, channel by
channel, so that its spatial mean stays the stage's own: so average pooling and a linear layer after the average give
the mean of the logits that they give after each stage's map.
"""

from collections.abc import Sequence
from typing import Any

import torch

from timm_wsms.network.backbone_traits import Layout
from timm_wsms.network.layouts import fit, from_map, to_map


def average_maps(
    maps: Sequence[torch.Tensor], padded: Sequence[torch.Tensor], images: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The average of the stages' maps.

    Args:
        maps: (B, C, h_s, w_s) of each stage, stage 1's first.
        padded: The images that they were computed from, padded at the right and the bottom.
        images: The same before they were padded.

    Returns:
        (B, C, h_1, w_1)
    """
    first, total = maps[0], maps[0]
    for x, whole, image in zip(maps[1:], padded[1:], images[1:], strict=True):
        fitted = fit(x, first, whole, image)
        if fitted is not x:
            fitted = fitted + (x.mean((2, 3), keepdim=True) - fitted.mean((2, 3), keepdim=True))
        total = total + fitted
    return total / len(maps)


def average_features(
    features: Sequence[Any],
    padded: Sequence[torch.Tensor],
    images: Sequence[torch.Tensor],
    reductions: Sequence[int],
    layout: Layout,
) -> Any:
    """The average of the stages' features, laid out as the backbone's.

    Class and register tokens are averaged as they are, and so is what has the same shape in every stage.

    Args:
        features: What `forward_features` of each stage returns, stage 1's first; for lists, each element is averaged.
        padded: As in `average_maps`.
        images: As in `average_maps`.
        reductions: Of the backbone's levels. Several features belong to the last of these.
        layout: Layout of the features.
    """
    if isinstance(features[0], (list, tuple)):
        count = len(features[0])
        levels = [*[reductions[0]] * (count - len(reductions)), *reductions][-count:]
        pairs = zip(zip(*features, strict=True), levels, strict=True)
        return [average_features(parts, padded, images, [reduction], layout) for parts, reduction in pairs]
    first = features[0]
    if first.ndim != 4 and all(x.shape == first.shape for x in features):  # no places (PiT), or no other size
        return torch.stack([*features]).mean(0)
    found = [to_map(x, image, reductions[-1], layout) for x, image in zip(features, padded, strict=True)]
    average = average_maps(found, padded, images)
    if first.ndim == 4 or layout == "NCL":
        return from_map(average, first, layout)
    prefixes = [x[:, : x.shape[1] - y.shape[-2] * y.shape[-1]] for x, y in zip(features, found, strict=True)]
    return torch.cat((torch.stack(prefixes).mean(0), average.flatten(2).transpose(1, 2)), 1)
