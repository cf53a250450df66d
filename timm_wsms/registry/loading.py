"""Loads weights into a network or its backbone, and says how many of them fit: random weights never go unnoticed."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from timm.models import load_pretrained
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.network.base import MultiStageNet
from timm_wsms.registry.loading_errors import explain, explained
from timm_wsms.registry.resampling import resample_tables
from timm_wsms.registry.weights import FOLDERS, LoadPlan

_logger = logging.getLogger(__name__)


def load_backbone(plan: LoadPlan, build: Callable[..., nn.Module]) -> nn.Module:
    """Build the backbone with its own weights, by timm's loading, which brings foreign forms into timm's.

    Args:
        plan: A plan of kind "backbone".
        build: Builds the backbone; takes `pretrained`.

    Raises:
        UserError: If the weights cannot be loaded, or a given checkpoint holds none of the backbone's.
    """
    try:
        backbone = build(pretrained=True)
    except UserError:
        raise
    except Exception as error:
        build(pretrained=False)  # raises errors that have nothing to do with weights
        given = bool(plan.cfg.file or plan.cfg.state_dict)
        raise UserError(explain(error, plan.where, plan.name, plan.backbone, given)) from error
    if plan.weights is not None:
        _check_backbone(backbone, plan)
    return backbone


def load_network(network: MultiStageNet, plan: LoadPlan, build_original: Callable[[], MultiStageNet] | None) -> None:
    """Load the weights of a multi-stage network. All must fit; only the classifier starts fresh, and only where the
    network has another number of classes than the weights. Position tables are resampled for another image size.

    Args:
        network: A network of the architecture that the weights are for.
        plan: A plan of kind "network".
        build_original: Builds the network for the image size that the weights are for, if it is another.

    Raises:
        UserError: If they do not fit.
    """
    own = network.state_dict()
    weights = dict(plan.weights or {})
    if not own.keys() & weights.keys():
        raise UserError(_nothing_fits(plan, plan.name))
    classes, theirs = network.num_classes, _classes_of_weights(network, plan, own, weights)
    fresh = _unfit_classifiers(network, own, weights) if theirs != classes else set()
    # built for `features_only`, and trained there
    added = [key for key in own if key.startswith("feature_pyramid.") and key not in weights]
    weights = {key: tensor for key, tensor in weights.items() if key not in fresh}
    weights |= {key: own[key] for key in (*fresh, *added) if key in own}
    if build_original is not None:
        with explained(plan.where, plan.name, plan.backbone):
            weights = resample_tables(network, weights, build_original)
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
        counts = f"{theirs or 'no'} classes, not {classes or 'none'}"
        _logger.warning(f"{what}; its classifier is not that of the checkpoint ({counts}), and starts fresh")
    else:
        _logger.info(what)


def _classes_of_weights(
    network: MultiStageNet, plan: LoadPlan, own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
) -> int:
    """The number of classes of the weights: stated by a checkpoint folder; for a file, read from the tensors."""
    if plan.cfg.source in FOLDERS:
        return plan.cfg.num_classes
    prefixes, classes = _classifiers(network), network.num_classes
    theirs = {key: tensor for key, tensor in weights.items() if key.startswith(prefixes)}
    if not classes:
        return next((tensor.shape[0] for tensor in theirs.values() if tensor.ndim > 1), 0)
    # the tensors that have one row per class in the network
    rows = [
        tensor.shape[0]
        for key, tensor in theirs.items()
        if tensor.ndim and own.get(key, tensor).shape[:1] == (classes,)
    ]
    return next((count for count in rows if count != classes), classes if rows else 0)


def _unfit_classifiers(
    network: MultiStageNet, own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
) -> set[str]:
    """The tensors of the classifiers' layers in which any tensor differs in shape or is on one side only."""
    keys = [key for key in {*own, *weights} if key.startswith(_classifiers(network))]
    unfit = [key for key in keys if key not in own or key not in weights or own[key].shape != weights[key].shape]
    layers = {key.rpartition(".")[0] for key in unfit}  # as a whole: no new weight goes with an old bias
    return {key for key in keys if key.rpartition(".")[0] in layers}


def _classifiers(network: MultiStageNet) -> tuple[str, ...]:
    """What the names of the classifiers' tensors start with, in the network's state dict."""
    names = network.get_classifier(name_only=True)
    names = (names,) if isinstance(names, str) else names
    inside = {name.removeprefix("backbone.") for name in names}
    stages = [f"stages.{number}.backbone.{name}" for number in network.stages for name in inside]
    return tuple(f"{name}." for name in (*names, *stages))


def _check_backbone(backbone: nn.Module, plan: LoadPlan) -> None:
    """Say how much of a checkpoint was loaded into the backbone.

    timm loads with `strict=False` when the number of classes differs, and then accepts a checkpoint of which no name
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
    """The informative tensors of a nested dictionary: ones, zeros and counters are the same everywhere."""
    for value in tensors.values():
        if isinstance(value, Mapping):
            yield from _varied(value)
        elif isinstance(value, torch.Tensor) and value.numel() > 1 and value.is_floating_point():
            first, last = _ends(value)
            if first != last:
                yield value


def _fingerprint(tensor: torch.Tensor) -> tuple[int, float, float]:
    """What stays the same when timm renames, reshapes or permutes a tensor, and is hardly the same by chance."""
    return tensor.numel(), *_ends(tensor)


def _ends(tensor: torch.Tensor) -> tuple[float, float]:
    first, last = (0,) * tensor.ndim, (-1,) * tensor.ndim
    return tensor[first].item(), tensor[last].item()
