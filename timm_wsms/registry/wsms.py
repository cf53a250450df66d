"""Names: `wsms_<backbone>` and `ms_<backbone>` in timm's registry. timm lists them as module "wsms"."""

import dataclasses
import json
from collections import deque
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.models import DefaultCfg, PretrainedCfg, build_model_with_cfg, register_model
from timm.models import _registry as registry
from timm.models._builder import resolve_pretrained_cfg
from torch import nn

from timm_wsms import backbones
from timm_wsms.errors import UserError, check_choice
from timm_wsms.hub.config_check import SOURCES, check_model_args, check_pretrained_cfg
from timm_wsms.hub.published import Published, published
from timm_wsms.network.base import MultiStageNet
from timm_wsms.network.features import WsmsFeatures
from timm_wsms.network.mean_net import WsmsMeanNet
from timm_wsms.network.wsms_net import WsmsNet
from timm_wsms.registry.warm_start import (
    fetch_weights,
    from_backbone,
    one_line_errors,
    only_safetensors,
    start_fresh,
    starts_from_backbone,
)

NETWORK_ARGS: dict[str, tuple[type, ...]] = {
    "fusion": (str,),
    "stages": (int,),
    "pyramid": (list, tuple),
    "integration": (str,),
    "integration_channels": (int,),
    "residual": (bool,),
    "share_weights": (bool,),
    "unshared_norms": (str,),
}
Fusion = Literal["concat", "mean"]
CONCAT_ARGS = ("integration", "integration_channels", "residual")  # of fusion="concat" alone
PREFIXES = {"wsms_": True, "ms_": False}  # prefix: are the weights shared?
HEAD_CLASSIFIER = (
    "head.fc"  # of a network with a head of its own, since its integrated map is wider than the backbone's
)
NO_WEIGHTS: dict[str, Any] = {
    "url": "",
    "file": None,
    "hf_hub_id": None,
    "hf_hub_filename": None,
    "custom_load": False,
    "tag": None,
    "source": None,
}

default_cfgs: dict[str, DefaultCfg] = {}  # timm's register_model reads a module's `default_cfgs` and `__all__`
__all__ = ["register"]


def register(backbone: str) -> None:
    """Add `wsms_<backbone>` and `ms_<backbone>` to timm's registry.

    Whether the backbone can be staged is checked when a model is built, so this costs nothing.

    Args:
        backbone: Name of an architecture that is registered with timm, without a pretrained tag.

    Raises:
        UserError: If timm does not know the name.
    """
    if not timm.is_model(backbone):
        raise UserError(f"timm has no model {backbone!r}; register it with timm.models.register_model first")
    default_cfgs[f"wsms_{backbone}"] = _default_cfg(backbone)
    for prefix, share_weights in PREFIXES.items():
        register_model(_entrypoint(f"{prefix}{backbone}", backbone, share_weights))


def register_all() -> None:
    """Register every architecture of timm's that can be staged, or that is newer than the table of those that can."""
    reasons = _table()["not_stageable"]
    for backbone in [*registry._model_entrypoints]:
        if backbone in registry._deprecated_models or backbone.startswith(tuple(PREFIXES)):
            continue
        if backbone in reasons:
            _refuse(backbone, reasons[backbone])
        else:
            register(backbone)


@cache
def _table() -> dict[str, Any]:
    """The names that can be staged, and why the others cannot: written by `python -m timm_wsms.registry.stageable`."""
    return json.loads((Path(__file__).parent / "stageable.json").read_text())


@cache
def _published() -> dict[str, list[Published]]:
    """The published checkpoints of each name."""
    return {entry.name: [one for one in published() if one.name == entry.name] for entry in published()}


def _default_cfg(backbone: str) -> DefaultCfg:
    """The tags: first what has been published, then the backbone's own.

    Each of these says where timm keeps its weights, under names that hold in a WsmsNet.
    """
    own: Any = registry._model_default_cfgs.get(backbone) or DefaultCfg(deque([""]), {"": PretrainedCfg()})
    ours = _published().get(f"wsms_{backbone}", ())
    cfgs = {entry.tag: entry.pretrained_cfg() for entry in ours}
    for tag in (tag for tag in own.tags if tag not in cfgs):
        # the completed config: the plain one's hub id `timm/` would be completed with the wrong name
        cfg = registry._model_pretrained_cfgs.get(f"{backbone}.{tag}" if tag else backbone, own.cfgs[tag])
        classifier = HEAD_CLASSIFIER if backbone in backbones.CIFAR_NAMES else _inside(cfg.classifier)
        cfgs[tag] = dataclasses.replace(cfg, first_conv=_inside(cfg.first_conv), classifier=classifier)
    return DefaultCfg(deque(cfgs), cfgs, bool(ours) or own.is_pretrained)


def _inside(names: Any) -> Any:
    """A module's name in the backbone → its name in the network; or several."""
    if names is None or isinstance(names, str):
        return names and f"backbone.{names}"
    return tuple(f"backbone.{name}" for name in names)


def _entrypoint(name: str, backbone: str, share_weights: bool) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> Any:
        kwargs.setdefault("share_weights", share_weights)
        return create(name, backbone, pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"`{backbone}` as a {'weight-shared ' * share_weights}multi-stage network; see `WsmsNet`."
    return entrypoint


def _refuse(backbone: str, reason: str) -> None:
    """Answer `wsms_<backbone>` with the reason why there is none. Listed as deprecated, timm does not list it."""

    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise UserError(f"{backbone} cannot be staged: {reason}. timm.list_models('wsms_*') lists those that can")

    for prefix in PREFIXES:
        registry._model_entrypoints[prefix + backbone] = refuse
        registry._deprecated_models[prefix + backbone] = None


def create(
    name: str,
    backbone: str,
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: Any = None,
    pretrained_model_args: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Build a WsmsNet, or with `fusion="mean"` a WsmsMeanNet, as timm builds a model.

    Args:
        name: `wsms_<backbone>` or `ms_<backbone>`.
        backbone: Name of the backbone in timm's registry.
        pretrained: Load weights: those of a WSMS checkpoint, or the backbone's own to start from.
        pretrained_cfg: As in `timm.create_model`.
        pretrained_cfg_overlay: As in `timm.create_model`.
        cache_dir: As in `timm.create_model`.
        pretrained_model_args: The arguments found in a checkpoint folder's config.json, if it comes from one.
        **kwargs: `fusion` and the arguments of `WsmsNet` or `WsmsMeanNet`; all others go to the backbone.

    Raises:
        UserError: If an argument does not fit; the message names the remedy.
    """
    check_arguments(kwargs, pretrained_model_args or {})
    features_only = bool(kwargs.get("features_only"))
    if features_only and kwargs.pop("feature_cls", "getter") != "getter":
        raise UserError(f"features_only of {name} goes through forward_intermediates; leave out feature_cls")
    if pretrained_cfg is None and name.startswith("ms_"):  # these have no tags of their own
        pretrained_cfg = dataclasses.replace(_default_cfg(backbone).default, architecture=name, **NO_WEIGHTS)
    if isinstance(pretrained_cfg, dict) and pretrained_cfg.get("source") in SOURCES:  # read from a folder
        check_pretrained_cfg(pretrained_cfg, pretrained_model_args or {})
    cfg = resolve_pretrained_cfg(
        name, dataclasses.asdict(pretrained_cfg) if isinstance(pretrained_cfg, PretrainedCfg) else pretrained_cfg,
        pretrained_cfg_overlay,
    )  # fmt: skip
    cfg = only_safetensors(cfg) if pretrained else cfg
    warm = pretrained and starts_from_backbone(cfg)
    # A tag of the backbone's: what has been published is none.
    warm_tag = cfg.source is None and (pretrained_cfg is None or isinstance(pretrained_cfg, str))
    network_args = {key: kwargs.pop(key) for key in NETWORK_ARGS if key in kwargs}
    averages = network_args.pop("fusion", "concat") == "mean"
    if features_only and kwargs.get("out_indices") is None:
        with torch.device("meta"):  # timm's choice differs from backbone to backbone
            plain: Any = timm.create_model(backbone, **kwargs)
        kwargs["out_indices"] = plain.feature_info.out_indices

    def build_backbone(pretrained: bool = warm, **backbone_args: Any) -> Any:
        source: dict[str, Any] = {}
        if warm_tag:  # some backbones ask for the tag
            source = {"pretrained_cfg": pretrained_cfg, "pretrained_cfg_overlay": pretrained_cfg_overlay}
        elif pretrained:
            own: Any = registry.get_pretrained_cfg(backbone)
            own_names: dict[str, Any] = {"first_conv": own.first_conv, "classifier": own.classifier}
            source = {"pretrained_cfg": dataclasses.replace(cfg, architecture=backbone, **own_names).to_dict()}
        return timm.create_model(backbone, pretrained=pretrained, cache_dir=cache_dir, **source, **backbone_args)

    def build_network(**backbone_args: Any) -> MultiStageNet:
        form: Any = WsmsMeanNet
        if not averages:
            gamma = 0.0 if pretrained and (warm or features_only) else 1.0
            form = partial(WsmsNet, gamma=gamma, feature_pyramid=features_only)
        network: MultiStageNet = form(
            lambda **stage_args: build_backbone(**{**backbone_args, **stage_args}),
            img_size=backbone_args.get("img_size"),
            **network_args,
        )
        network.register_load_state_dict_pre_hook(from_backbone)
        if warm:
            start_fresh(network, name)
        return network

    with one_line_errors(cfg, name, backbone):
        if pretrained and cfg.source == "hf-hub":
            fetch_weights(cfg, cache_dir)
        model: Any = build_model_with_cfg(
            build_network,
            name,
            pretrained=pretrained and not warm,
            pretrained_cfg=cfg.to_dict(),
            pretrained_model_args=pretrained_model_args,
            cache_dir=cache_dir,
            feature_cfg={"feature_cls": WsmsFeatures},
            **kwargs,
        )
    if features_only:
        return model
    if model.head is not None:
        model.pretrained_cfg["classifier"] = HEAD_CLASSIFIER
    elif model.pretrained_cfg["classifier"] == HEAD_CLASSIFIER:
        own: Any = registry.get_pretrained_cfg(backbone)
        model.pretrained_cfg["classifier"] = _inside(own.classifier)
    return model


def check_arguments(arguments: dict[str, Any], from_file: dict[str, Any]) -> None:
    """Check the types of the network's own arguments, that they go together, and that a file names none but known ones.

    Raises:
        UserError: Naming the argument.
    """
    check_model_args(from_file, NETWORK_ARGS)
    for key, kinds in NETWORK_ARGS.items():
        value = arguments.get(key)
        if value is not None and type(value) not in kinds:
            raise UserError(f"{key} must be {kinds[0].__name__}, not {value!r}")
    fusion = arguments.get("fusion", "concat")
    check_choice("fusion", fusion, Fusion)
    if fusion == "mean":
        if unfit := [key for key in CONCAT_ARGS if arguments.get(key) is not None]:
            raise UserError(f"fusion='mean' averages logits and integrates no maps; leave out {', '.join(unfit)}")
        if arguments.get("features_only"):
            raise UserError("features_only needs fusion='concat': fusion='mean' averages logits and integrates no maps")
