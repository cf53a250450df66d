"""Back to the plain backbone: one stage of a trained network as a timm model, as cheap as the backbone."""

import copy
from numbers import Integral
from typing import Any

import torch
from timm.models import filter_pretrained_cfg, get_model_input_config

from timm_wsms.errors import UserError
from timm_wsms.network.backbone_traits import TimmModel
from timm_wsms.network.base import MultiStageNet
from timm_wsms.network.checkpointing_bn import update_statistics_once
from timm_wsms.network.mean_net import WsmsMeanNet
from timm_wsms.network.ties import untie
from timm_wsms.network.wsms_net import WsmsNet

LOCATIONS = ("state_dict", "custom_load", "label_offset")  # of a source with other weights; timm drops the rest
FOR_TESTS = ("test_input_size", "test_crop_pct", "test_pool_size")  # what timm recommends for stage 1's images
LABELS = ("label_names", "label_descriptions")  # for the number of classes the network was loaded with


def to_backbone(model: Any, stage: int = 1, drop_integration: bool = False) -> TimmModel:
    """One stage of a network as a plain timm model: the backbone, with its trained weights.

    In eval mode it computes the stage's logits bit for bit: stage 1's of the image, and another stage's of that stage's
    image, `model.stage_images(images)[stage - 1]`. It has its own tensors and no class or hook of this package.
    Its `pretrained_cfg` names the backbone's architecture, so that `timm.models.save_for_hf` and `push_to_hf_hub`
    write a checkpoint that needs timm alone. It is on the network's device and in its mode (training or eval).

    With `fusion="mean"` every stage is a whole backbone. With `fusion="concat"` only stage 1 is, and its
    logits equal the network's only with `residual` and γ = 0.

    Args:
        model: A `WsmsMeanNet`, or a `WsmsNet` with `residual`, not wrapped or compiled. Not modified.
        stage: Number of the stage, counted from 1. `pretrained_cfg["input_size"]` is the size of its image, and timm's
            transform for that size resizes differently from the pyramid, so accuracies may differ a little.
        drop_integration: For a `WsmsNet` whose γ is not 0: accept that the integrated map is dropped, and with it
            the contribution of stages 2, 3 … to the logits.

    Returns:
        The backbone, (B, in_chans, H, W) → (B, num_classes).

    Raises:
        UserError: If the model is not such a network, has no such stage, or the stage alone would compute something
            else; says what would be lost.
    """
    check_plain(model, stage, drop_integration)
    model.follow()
    plain: Any = copy.deepcopy(model.backbones()[stage - 1])
    update_statistics_once(plain, enable=False)  # its hooks on norms are ours
    untie(plain)
    plain.pretrained_cfg = plain.default_cfg = _pretrained_cfg(model, plain, stage)
    return plain


def check_plain(model: Any, stage: int = 1, drop_integration: bool = False) -> None:
    """Check that a stage of a network is a plain backbone; for arguments and errors see `to_backbone`."""
    if not isinstance(model, MultiStageNet):
        raise UserError(
            f"to_backbone takes a network that timm_wsms built, not {type(model).__name__}; give it without wrappers, "
            "and not built with features_only=True"
        )
    count = len(model.factors())
    if not isinstance(stage, Integral) or isinstance(stage, bool) or not 1 <= stage <= count:
        raise UserError(f"stage must be 1 to {count}, the stages of this network; not {stage!r}")
    if not isinstance(model, WsmsNet) or model.integration is None:
        return
    if stage > 1:
        raise UserError(
            f"stage {stage} of fusion='concat' ends before the backbone's last blocks and has no head; take stage 1, "
            "or train with fusion='mean'"
        )
    if not model.residual:
        raise UserError(
            "without residual the classifier was trained on the integrated map alone, and stage 1 has none of its own; "
            "train with fusion='mean', or with residual=True"
        )
    gamma: Any = model.integration.gamma
    if gamma.any() and not drop_integration:
        raise UserError(
            "this network adds the integrated map of all stages to stage 1's (γ is not 0), and stage 1 alone gives "
            "other logits; give drop_integration=True to lose that map, or train with fusion='mean'"
        )


def _pretrained_cfg(model: MultiStageNet, plain: Any, stage: int) -> dict[str, Any]:
    """timm's config of the plain model: that of the network, under the backbone's names."""
    own: dict[str, Any] = plain.pretrained_cfg
    known: dict[str, Any] = getattr(model, "pretrained_cfg", own)  # a network that the registry didn't build has none
    size = _image_size(model, stage)
    dropped = {*LOCATIONS, *(FOR_TESTS if stage > 1 else ())}
    if known.get("num_classes") != plain.num_classes:
        dropped |= {*LABELS}
    names = {key: own.get(key) for key in ("architecture", "first_conv", "classifier")}
    cfg = {**filter_pretrained_cfg(known, remove_source=True), **names}
    cfg |= {"num_classes": plain.num_classes, "input_size": size}
    if size[1:] != tuple(known["input_size"][1:]):
        cfg["pool_size"] = None
    return {key: copy.deepcopy(value) for key, value in cfg.items() if key not in dropped}


def _image_size(model: MultiStageNet, stage: int) -> tuple[int, int, int]:
    """(channels, height, width) of the images that a stage's backbone takes."""
    known: Any = getattr(model, "pretrained_cfg", None)
    built = get_model_input_config(model if known else model.backbone)
    channels, height, width = built["input_size"]
    recorded = known and tuple(known["input_size"]) != tuple(model.backbone.pretrained_cfg["input_size"])
    if recorded and not built["fixed_input_size"]:  # trained on images of another size than it was built for
        height, width = known["input_size"][1:]
    if stage > 1 and isinstance(model, WsmsMeanNet):
        images = model.stage_images(torch.empty(1, channels, height, width, device="meta"))
        height, width = images[stage - 1].shape[-2:]
    return channels, height, width
