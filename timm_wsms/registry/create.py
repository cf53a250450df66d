"""Builds a multi-stage network as timm builds a model: find out where its weights are, build it, load them."""

import dataclasses
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg

from timm_wsms.errors import UserError
from timm_wsms.network.base import MultiStageNet
from timm_wsms.network.features import WsmsFeatures
from timm_wsms.network.mean_net import WsmsMeanNet
from timm_wsms.network.wsms_net import WsmsNet
from timm_wsms.registry.arguments import Arguments, record_form, sort_arguments
from timm_wsms.registry.loading import load_backbone, load_network
from timm_wsms.registry.size_check import check_size
from timm_wsms.registry.warm_start import from_backbone, start_fresh
from timm_wsms.registry.weights import FOLDERS, LoadPlan, plan_weights
from timm_wsms.utils import shorten


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
    """Build a `WsmsNet`, or with `fusion="mean"` a `WsmsMeanNet`, as timm builds a model.

    Args:
        name: `wsms_<backbone>`, `ms_<backbone>` or `wsmean_<backbone>`.
        backbone: Name of the backbone in timm's registry.
        pretrained: Load weights: those of a multi-stage network, or the backbone's own to start from.
        pretrained_cfg: As in `timm.create_model`.
        pretrained_cfg_overlay: As in `timm.create_model`.
        cache_dir: As in `timm.create_model`.
        pretrained_model_args: The arguments found in a checkpoint folder's config.json, if it comes from one.
        **kwargs: `fusion` and the arguments of `WsmsNet` or `WsmsMeanNet`; all others go to the backbone.

    Raises:
        UserError: If an argument does not fit, or weights do not; the message names the remedy.
    """
    from_file = pretrained_model_args or {}
    arguments = sort_arguments(name, kwargs, from_file)
    plan = plan_weights(name, backbone, pretrained, pretrained_cfg, pretrained_cfg_overlay, cache_dir, from_file)
    if arguments.features_only and arguments.backbone.get("out_indices") is None:
        arguments.backbone["out_indices"] = _timms_out_indices(backbone, arguments)

    def build_and_load(**backbone_args: Any) -> MultiStageNet:
        build = partial(build_network, plan, arguments, backbone_args)
        if plan.weights is not None and plan.cfg.source in FOLDERS:
            check_size(build, sum(tensor.numel() for tensor in plan.weights.values()), plan.where)
        try:
            network = build()
        except (UserError, MemoryError):
            raise
        except Exception as error:  # timm's classes check few of their arguments
            if not from_file:
                raise
            raise UserError(
                f"{name} cannot be built with the model_args of its config.json ({shorten(error)}); correct them"
            ) from error
        if plan.kind == "network":
            trained = to_2tuple(from_file.get("img_size") or plan.cfg.input_size[1:])
            resized = to_2tuple(backbone_args.get("img_size") or trained) != trained
            original = partial(build_network, plan, arguments, {**backbone_args, "img_size": trained})
            load_network(network, plan, original if resized else None)
        return network

    model: Any = build_model_with_cfg(
        build_and_load,
        name,
        pretrained=False,  # what there is to load is loaded by then
        pretrained_cfg=dataclasses.replace(plan.cfg, state_dict=None).to_dict(),
        pretrained_model_args=pretrained_model_args,
        feature_cfg={"feature_cls": WsmsFeatures},
        **arguments.backbone,
    )
    if not arguments.features_only:
        model.pretrained_cfg["classifier"] = _classifier(model)
        record_form(model, arguments)
    return model


def build_network(plan: LoadPlan, arguments: Arguments, backbone_args: dict[str, Any]) -> MultiStageNet:
    """The network; if it starts from its backbone's weights, with these.

    Args:
        plan: Where its weights are.
        arguments: The network's own are used here.
        backbone_args: The backbone's, as processed by timm.
    """
    warm = plan.kind == "backbone"

    def build_backbone(pretrained: bool = warm, **stage_args: Any) -> Any:
        common = {**backbone_args, **stage_args}
        if not pretrained:
            return timm.create_model(plan.backbone, **plan.from_tag, **common)
        source = {**plan.backbone_source(), "cache_dir": plan.cache_dir}
        return load_backbone(plan, partial(timm.create_model, plan.backbone, **source, **common))

    form: Any = WsmsMeanNet
    if arguments.fusion == "concat":
        gamma = 0.0 if warm or (plan.kind == "network" and arguments.features_only) else 1.0
        form = partial(WsmsNet, gamma=gamma, feature_pyramid=arguments.features_only)
    network: MultiStageNet = form(build_backbone, img_size=backbone_args.get("img_size"), **arguments.network)
    network.register_load_state_dict_pre_hook(from_backbone)
    if warm:
        start_fresh(network, plan.name)
    return network


def inside(names: Any) -> Any:
    """A module's name in the backbone → its name or names in the network."""
    if names is None or isinstance(names, str):
        return names and f"backbone.{names}"
    return tuple(f"backbone.{name}" for name in names)


def _classifier(network: MultiStageNet) -> Any:
    """Names of the layers that hold the classifier's weights: those of the network's own head, or what timm says.

    `get_classifier` of LeViT, iFormer, CPUBone and EfficientViM returns a module around that layer.
    """
    if network.head is not None:
        return network.get_classifier(name_only=True)
    return inside(network.backbone.pretrained_cfg.get("classifier"))


def _timms_out_indices(backbone: str, arguments: Arguments) -> Any:
    """Which maps `features_only` returns by default: timm's choice differs from backbone to backbone."""
    with torch.device("meta"):  # only the built model tells
        plain: Any = timm.create_model(backbone, **arguments.backbone)
    return plain.feature_info.out_indices
