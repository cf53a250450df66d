"""What a network takes over from its backbone when it starts from the backbone's weights, and what it does not."""

import logging
from typing import Any

import torch
from torch import nn

from timm_wsms.network.base import MultiStageNet
from timm_wsms.network.position_tables import resample

_logger = logging.getLogger(__name__)


def start_fresh(network: MultiStageNet, name: str) -> None:
    """Without a residual the backbone's classifier does not fit the integrated map: say so, and reset it."""
    if network.starts_as_backbone:
        return
    integration: Any = network.integration
    fresh = ["the integration layer"] if any(True for _ in integration.parameters()) else []
    if network.num_classes:
        if network.head is None:
            network.reset_classifier(network.num_classes)
        fresh.append("the classifier")
    if fresh:
        _logger.warning(f"{name} has no residual, so {' and '.join(fresh)} must be trained before use: so far random")


def from_backbone(network: MultiStageNet, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load-state-dict hook: a state dict of the backbone becomes one of the network that gives the same logits.

    So `checkpoint_path` and `load_state_dict` take either. A part of the backbone's, such as all but its classifier, is
    accepted too: the rest is missing, as in timm. What the backbone does not have stays as it is, but γ is 0.
    """
    keys = [key for key in network.backbone.state_dict() if f"{prefix}{key}" in state_dict]
    named = any(key.startswith(f"{prefix}backbone.") for key in state_dict)  # it is the network's
    if not network.starts_as_backbone or named or not keys:
        return
    own = {key: state_dict.pop(f"{prefix}{key}") for key in keys}
    state_dict |= {f"{prefix}backbone.{key}": tensor for key, tensor in own.items()}
    for key, tensor in network.stages.state_dict().items():
        source = own.get(key.partition(".backbone.")[2], tensor)
        new = source.clone() if source.shape == tensor.shape else resample(source, tensor.shape)
        state_dict[f"{prefix}stages.{key}"] = new
    for part in ("integration", "feature_pyramid"):
        for key, tensor in (getattr(network, part, None) or nn.Module()).state_dict().items():
            new = torch.zeros_like(tensor) if key.endswith("gamma") else tensor
            state_dict[f"{prefix}{part}.{key}"] = new
