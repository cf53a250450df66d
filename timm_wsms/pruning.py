"""Removes what is left over of a backbone whose head another head replaces."""

import copy

import torch
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.sharing import TimmModel


def remove_head(backbone: TimmModel) -> None:
    """Remove all that `forward_features` does not use, so that every parameter left gets a gradient.

    Raises:
        UserError: If the features are tokens, which only the backbone's own head can pool.
    """
    backbone.reset_classifier(0, "")
    probe = copy.deepcopy(backbone).to("meta")
    size = backbone.pretrained_cfg["input_size"][1:]
    features = probe.forward_features(torch.zeros(2, backbone.in_chans, *size, device="meta"))
    if features.ndim != 4:
        raise UserError(
            f"this backbone gives tokens, so the integrated map must have f1's {backbone.num_features} channels; leave "
            "out integration_channels, and give an integration with a convolution"
        )
    used = _reached(features)
    removed: tuple[str, ...] = ()
    for path, module in probe.named_modules():
        parameters = set(module.parameters())
        if parameters and not parameters & used and not path.startswith(removed):
            parent, _, name = path.rpartition(".")
            setattr(backbone.get_submodule(parent), name, nn.Identity())
            removed += (f"{path}.",)  # what it held is gone with it


def _reached(output: torch.Tensor) -> set[torch.Tensor]:
    """The parameters that the output was computed from."""
    found, todo, seen = set(), [output.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        todo.extend(following for following, _ in node.next_functions)
    return found
