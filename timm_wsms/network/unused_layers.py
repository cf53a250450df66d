"""Removes what a backbone no longer needs once it is cut, or its head is replaced."""

import copy

import torch
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.network.backbone_traits import TimmModel
from timm_wsms.network.ties import find_owner


def remove_head(backbone: TimmModel) -> None:
    """Remove everything that `forward_features` does not use, so that every remaining parameter gets a gradient.

    Raises:
        UserError: If the features are tokens, which only the backbone's own head can pool.
    """
    backbone.reset_classifier(0, "")
    probe = copy.deepcopy(backbone).to("meta")
    size = backbone.pretrained_cfg["input_size"][1:]
    features = probe.forward_features(torch.zeros(2, backbone.in_chans, *size, device="meta"))
    if not (isinstance(features, torch.Tensor) and features.ndim == 4):
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
            removed += (f"{path}.",)  # its children are gone with it
    remove_empty_classifier(backbone)


def remove_empty_classifier(backbone: TimmModel) -> None:
    """Remove the `Identity` that timm leaves in a classifier's place, if the backbone's head is never called.

    PEFT's `target_modules="all-linear"` goes by names, and would mistake it for a linear layer.
    """
    names = getattr(backbone, "default_cfg", {}).get("classifier") or ()
    for name in (names,) if isinstance(names, str) else names:
        parent, child = find_owner(backbone, name), name.rpartition(".")[2]
        if parent is not None and isinstance(parent._modules.get(child), nn.Identity):
            setattr(parent, child, None)


def remove_unused(stage: nn.Module, backbone: TimmModel, share_weights: bool) -> None:
    """Remove a stage's own parts that it does not use, where blocks mix all resolutions (HRNet, EfficientViM).

    Only norms and loose parameters can be removed without changing shapes. Other unused parts belong to the backbone
    if weights are shared, and are frozen if they are not.

    Args:
        stage: Takes (B, in_chans, 64, 64).
        backbone: Stage 1.
        share_weights: As in `WsmsNet`.
    """
    probe = copy.deepcopy(stage).to("meta")
    image = torch.zeros(2, backbone.in_chans, 64, 64, device="meta")
    used = _reached(probe(image, image))
    kept = {id(parameter) for parameter in backbone.parameters()}
    for path, module in probe.named_modules():
        own = stage.get_submodule(path)
        for name, parameter in module.named_parameters(recurse=False):
            real = own.get_parameter(name)
            if parameter in used or id(real) in kept:
                continue
            if isinstance(own, nn.BatchNorm2d):
                parent, _, attribute = path.rpartition(".")
                setattr(stage.get_submodule(parent), attribute, nn.Identity())
                break
            if share_weights:
                own._parameters[name] = None
            else:
                real.requires_grad_(False)


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
