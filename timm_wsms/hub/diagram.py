"""A network as text art, which every page can show: its stages, and the maps that are integrated."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from timm_wsms.network.layouts import last_feature
from timm_wsms.network.mean_net import WsmsMeanNet
from timm_wsms.utils import eval_mode


def draw(model: Any, input_size: Sequence[int]) -> str:
    """Draws a network with its sizes.

    Args:
        model: A WsmsNet or any timm model; one on the meta device will do.
        input_size: (channels, height, width) of its images.
    """
    device = next(model.parameters()).device
    image = torch.zeros(1, *input_size, device=device)
    maps: list[torch.Tensor] = []
    integration = getattr(model, "integration", None) or nn.Module()
    hook = integration.register_forward_pre_hook(lambda _, inputs: maps.extend(inputs[0]))
    with torch.no_grad(), eval_mode(model):
        features = model.forward_features(image)
    last = last_feature(features)
    hook.remove()
    if isinstance(model, WsmsMeanNet):
        sizes = [_shape(one) for one in model.pyramid(image)]
        lines = [f"image {size} ─► the whole backbone and its head ─► {model.num_classes} logits" for size in sizes]
        return "\n".join([*lines, f"the mean of {len(sizes)} logits a class"])
    if not maps:
        return f"image {_shape(image)} ─► backbone ─► head ─► {model.num_classes} classes"
    first = f"image {_shape(image)} ─┬─► stage 1 "
    corner = first.index("┬")
    lines = [first]
    for number, small in enumerate(model.pyramid(image)[1:], start=2):
        fork = "┬" if number < len(maps) else "─"
        lines.append(f"{' ' * corner}└ 2×2 mean ─► {_shape(small)} ─{fork}─► stage {number} ")
        corner = lines[-1].rindex(fork + "─► stage")
    width = max(map(len, lines))
    lines = [f"{line.ljust(width, '─')}─► map {_shape(each)}" for line, each in zip(lines, maps, strict=True)]
    joined = f"the {len(maps)} maps" if len(maps) > 1 else "the map"
    lines.append(f"{joined} ─► integration ─► {_shape(last)} ─► head ─► {model.num_classes} classes")
    return "\n".join(lines)


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(str(side) for side in tensor.shape[1:])
