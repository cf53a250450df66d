"""Loads weights into a network or its backbone, and says how many of them fit: random weights never pass in silence."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from timm.models import load_pretrained
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.network.base import MultiStageNet
from timm_wsms.registry.loading_errors import explain, explained
from timm_wsms.registry.weights import LoadPlan

_logger = logging.getLogger(__name__)


def load_backbone(plan: LoadPlan, build: Callable[..., nn.Module]) -> nn.Module:
    """Build the backbone with its own weights, by timm's loading, which brings foreign forms into timm's.

    Args:
        plan: Of kind "backbone".
        build: Builds the backbone; takes `pretrained`.

    Raises:
        UserError: If the weights cannot be loaded, or a checkpoint that was given holds none of the backbone's.
    """
    try:
        backbone = build(pretrained=True)
    except UserError:
        raise
    except Exception as error:
        build(pretrained=False)  # raises what has nothing to do with weights
        given = bool(plan.cfg.file or plan.cfg.state_dict)
        raise UserError(explain(error, plan.where, plan.name, plan.backbone, given)) from error
    if plan.weights is not None:
        _check_backbone(backbone, plan)
    return backbone


def load_network(network: MultiStageNet, plan: LoadPlan) -> None:
    """Load the weights of a multi-stage network. All must fit but the classifier's, which starts fresh if it does not.

    Args:
        network: Of the architecture that the weights are for.
        plan: Of kind "network".

    Raises:
        UserError: If they do not fit.
    """
    own = network.state_dict()
    weights = dict(plan.weights or {})
    if not own.keys() & weights.keys():
        raise UserError(_nothing_fits(plan, plan.name))
    fresh = _unfit_classifiers(network, own, weights)
    # built for `features_only`, and trained there
    added = [key for key in own if key.startswith("feature_pyramid.") and key not in weights]
    weights = {key: tensor for key, tensor in weights.items() if key not in fresh}
    weights |= {key: own[key] for key in (*fresh, *added) if key in own}
    source = {
        "state_dict": weights,
        "architecture": plan.name,
        "first_conv": plan.cfg.first_conv,
        "input_size": plan.cfg.input_size,
    }
    with explained(plan.where, plan.name, plan.backbone):  # timm adapts the first convolution to the channels
        load_pretrained(network, source, num_classes=network.num_classes, in_chans=network.in_chans, strict=True)
    loaded = len(own) - len({*fresh, *added} & own.keys())
    what = f"{plan.where}: loaded {loaded} of {len(own)} tensors of {plan.name}"
    if fresh:
        _logger.warning(f"{what}; its classifier is not that of the checkpoint ({_classes(fresh)}), and starts fresh")
    else:
        _logger.info(what)


def _unfit_classifiers(
    network: MultiStageNet, own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
) -> dict[str, tuple[int, int]]:
    """The classifiers' tensors that differ in shape or are on one side only: their rows (checkpoint's, network's)."""
    names = network.get_classifier(name_only=True)
    names = (names,) if isinstance(names, str) else names
    inside = {name.removeprefix("backbone.") for name in names}
    stages = [f"stages.{number}.backbone.{name}" for number in network.stages for name in inside]
    prefixes = tuple(f"{name}." for name in (*names, *stages))
    fresh = {}
    for key in {*own, *weights}:
        shapes = [tensors[key].shape if key in tensors else None for tensors in (weights, own)]
        if key.startswith(prefixes) and shapes[0] != shapes[1]:
            rows = [shape[0] if shape else 0 for shape in shapes]
            fresh[key] = (rows[0], rows[1])
    return fresh


def _classes(fresh: Mapping[str, tuple[int, int]]) -> str:
    theirs, ours = next(iter(fresh.values()))
    return f"{theirs or 'no'} classes, not {ours or 'none'}"


def _check_backbone(backbone: nn.Module, plan: LoadPlan) -> None:
    """Say how much of a checkpoint has arrived in the backbone.

    timm loads with `strict=False` when the number of classes differs, and then takes a checkpoint of which not one name
    fits.
    """
    if next(backbone.parameters()).is_meta:
        return
    expected = [*map(_fingerprint, _varied(backbone.state_dict()))]
    known = {*map(_fingerprint, _varied(plan.weights or {}))}
    loaded = sum(fingerprint in known for fingerprint in expected)
    if not loaded:
        raise UserError(_nothing_fits(plan, plan.backbone))
    what = f"{plan.where}: loaded {loaded} of {len(expected)} tensors of {plan.backbone} that are not constant"
    classes, theirs = getattr(backbone, "num_classes", None), plan.cfg.num_classes
    if classes and classes != theirs:
        counts = f"{theirs or 'no'} classes, not {classes}"
        _logger.warning(f"{what}; its classifier is not that of the checkpoint ({counts}), and starts fresh")
    elif loaded < len(expected):
        _logger.warning(f"{what}; the others were adapted to this model, or start fresh")
    else:
        _logger.info(what)


def _nothing_fits(plan: LoadPlan, name: str) -> str:
    return f"{plan.where} holds no weights of {name}; give a checkpoint of {plan.backbone}, or one of {plan.name}"


def _varied(tensors: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """Of a nested dictionary, the tensors that say something: ones, zeros and counters are the same everywhere."""
    for value in tensors.values():
        if isinstance(value, Mapping):
            yield from _varied(value)
        elif isinstance(value, torch.Tensor) and value.numel() > 1 and value.is_floating_point():
            first, last = _ends(value)
            if first != last:
                yield value


def _fingerprint(tensor: torch.Tensor) -> tuple[int, float, float]:
    """What stays the same when timm renames a tensor, reshapes it or permutes its axes, and hardly is by chance."""
    return tensor.numel(), *_ends(tensor)


def _ends(tensor: torch.Tensor) -> tuple[float, float]:
    first, last = (0,) * tensor.ndim, (-1,) * tensor.ndim
    return tensor[first].item(), tensor[last].item()
