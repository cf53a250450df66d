"""The weight-shared multi-stage network (Takahashi et al., ACML 2017, Section 3): image → pyramid → stages → head."""

import copy
import re
from collections.abc import Callable
from typing import Any, get_args

import torch
import torch.nn.functional as F
from timm.layers import ClassifierHead
from timm.models._input import _get_global_pool
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.integration import Integration, IntegrationKind
from timm_wsms.recompute import update_statistics_once
from timm_wsms.stages import Level, Stage, TimmModel, UnsharedNorms, copy_sharing, levels, shared_keys

KERNEL_SIZE = {"conv1x1": 1, "conv3x3": 3, "none": 0}


class WsmsNet(nn.Module):
    """A timm backbone run on the image, its half-size copy, its quarter-size copy …; the maps are integrated.

    ```
    image ─┬──────────────► stage 1: the whole backbone       ─► f1 (B, C1, h, w)
           └ avg-pool 2×2 ─┬► stage 2: its blocks up to R/2   ─► f2 (B, C2, h, w)
                           └ avg-pool 2×2 ─► stage 3: to R/4  ─► f3 (B, C3, h, w)
    concat(f1, f2, f3) ─► integration ─► global pool ─► classifier
    ```

    Args:
        build_backbone: Returns the backbone, a timm model. Called once, or once a stage without shared weights.
        stages: Number of stages, S; None: 3, or the number of levels of a backbone that has fewer. 1: the backbone.
        integration: "conv1x1", "conv3x3" or "none" (paper, Fig. 3).
        integration_channels: Channels of the integrated map, c. None: f1's, or what the paper gives its own backbones.
        residual: Add the integrated map, weighted by γ, to f1 instead of putting it in f1's place. None: True but for
            the paper's own backbones.
        share_weights: False for the paper's MS-Net: the same shape, nothing shared.
        unshared_norms: Norms of which every stage has its own: "batch" (the paper), "all" or "none".
        gamma: What γ starts from: 0 leaves the backbone's logits as they are.

    Raises:
        UserError: If the backbone or the arguments do not allow it; the message names the remedy.
    """

    def __init__(
        self,
        build_backbone: Callable[[], TimmModel],
        stages: int | None = None,
        integration: IntegrationKind = "conv1x1",
        integration_channels: int | None = None,
        residual: bool | None = None,
        share_weights: bool = True,
        unshared_norms: UnsharedNorms = "batch",
        gamma: float = 1.0,
    ):
        super().__init__()
        _check_choice("integration", integration, IntegrationKind)
        _check_choice("unshared_norms", unshared_norms, UnsharedNorms)
        self.backbone: TimmModel = (backbone := build_backbone())
        self.nhwc = _format(backbone) == "NHWC"  # the axes of the backbone's maps
        cuts = _choose_levels(backbone, stages)
        paper = getattr(backbone, "wsms_defaults", {})
        residual = paper.get("residual", True) if residual is None else residual

        self.stages = nn.ModuleDict()  # keys "2", "3" …: the paper's numbers
        for number, level in enumerate(cuts[1:], start=2):
            part = copy_sharing(backbone, unshared_norms) if share_weights else build_backbone()
            self.stages[str(number)] = Stage(part, level)
        self.integration: Integration | None = None
        self.head: ClassifierHead | None = None
        self.num_features: int = backbone.num_features
        if self.stages:
            widths = [self.num_features, *(level.channels for level in cuts[1:])]
            self._integrate(widths, integration, integration_channels, residual, gamma, paper)
        self.feature_info = [dict(backbone.feature_info[i]) for i in range(len(backbone.feature_info))]
        self.register_state_dict_post_hook(_drop_shared)

    def _integrate(
        self, widths: list[int], kind: str, channels: int | None, residual: bool, gamma: float, paper: dict[str, Any]
    ) -> None:
        """Build the integration layer, and a head of its own where the integrated map is not as wide as f1."""
        if residual and (kind == "none" or channels not in (None, widths[0])):
            raise UserError(
                f"residual adds the integrated map to f1 of {widths[0]} channels, so it needs a convolution and "
                f"integration_channels={widths[0]}; give residual=False for integration={kind!r}, "
                f"integration_channels={channels}"
            )
        if kind == "none":
            if channels not in (None, sum(widths)):
                raise UserError(f"integration='none' gives {sum(widths)} channels; leave out integration_channels")
            channels = sum(widths)
        elif channels is None:
            channels = widths[0] if residual else paper.get("integration_channels", widths[0])
        if channels < 1:
            raise UserError(f"integration_channels must be positive, not {channels}")
        reference = next(self.backbone.parameters())
        self.integration = Integration(widths, channels, KERNEL_SIZE[kind], residual, gamma)
        if channels != widths[0]:
            pool = _get_global_pool(self.backbone) or "avg"
            drop_rate = getattr(self.backbone, "drop_rate", 0.0)
            fmt = "NHWC" if self.nhwc else "NCHW"
            self.head = ClassifierHead(channels, self.backbone.num_classes, pool, drop_rate, input_fmt=fmt)
            self.head.to(reference.device, reference.dtype)
            self.num_features = channels
            _remove_head(self.backbone)
        self.integration.to(reference.device, reference.dtype)

    # ---- what timm asks of a model

    @property
    def num_classes(self) -> int:
        """Size of the classifier; 0 without one."""
        owner = self.backbone if self.head is None else self.head.fc
        return getattr(owner, "num_classes", getattr(owner, "out_features", 0))

    @property
    def in_chans(self) -> int:
        """Channels of the image."""
        return self.backbone.in_chans

    @property
    def head_hidden_size(self) -> int:
        """Channels of the pre-logits."""
        return self.backbone.head_hidden_size if self.head is None else self.head.num_features

    @property
    def global_pool(self) -> str | None:
        """timm's name for the pooling in front of the classifier."""
        return _get_global_pool(self.backbone) if self.head is None else self.head.global_pool.pool_type

    def get_classifier(self, name_only: bool = False) -> Any:
        """The classifier, or its name in this model; a tuple for backbones with more than one."""
        classifier = self.backbone.get_classifier() if self.head is None else self.head.fc
        if not name_only:
            return classifier
        names = {id(module): name for name, module in self.named_modules()}
        several = isinstance(classifier, (tuple, list))
        return tuple(names[id(part)] for part in classifier) if several else names[id(classifier)]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier (0: none), and the pooling unless it is None ("": none)."""
        if self.head is not None:
            self.head.reset(num_classes, global_pool)
        elif global_pool is None:
            self.backbone.reset_classifier(num_classes)
        else:
            self.backbone.reset_classifier(num_classes, global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass; running statistics are still updated once a step."""
        for part in (self.backbone, *(stage.backbone for stage in self.stages.values())):
            part.set_grad_checkpointing(enable)
        update_statistics_once(self, enable)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that timm's optimizers leave out of weight decay."""
        skip = getattr(self.backbone, "no_weight_decay", set)
        return {f"backbone.{name}" for name in skip()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions for timm's layer-wise grouping: a stage's norms go with the backbone's."""

        def inside(pattern: Any) -> Any:
            if not isinstance(pattern, str):  # a list of (pattern, ordinal)
                return [(inside(one), ordinal) for one, ordinal in pattern]
            pattern = re.sub(r"(^|[|(])\^", r"\1", pattern)  # the anchor moves to the front
            return rf"^(?:stages\.\d+\.)?backbone\.(?:{pattern})"

        return {group: inside(pattern) for group, pattern in self.backbone.group_matcher(coarse=coarse).items()}

    # ---- forward

    def pyramid(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, H, W) → S images of (B, C, H / 2^(s-1), W / 2^(s-1)), by 2×2 average pooling."""
        images = [image]
        for _ in self.stages:
            images.append(F.avg_pool2d(images[-1], 2))
        return images

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) → the integrated map (B, num_features, h, w), laid out as the backbone's."""
        side = 2 ** len(self.stages)
        if x.shape[-2] < side or x.shape[-1] < side:
            raise UserError(
                f"an image of {x.shape[-2]}×{x.shape[-1]} pixels is too small for {len(self.stages) + 1} stages: "
                f"give at least {side}×{side}, or fewer stages"
            )
        images = self.pyramid(x)
        f1 = self.backbone.forward_features(images[0])  # first, since then it draws its random numbers first
        if self.integration is None:
            return f1
        f1 = f1.permute(0, 3, 1, 2) if self.nhwc else f1  # (B, C1, h, w)
        maps = [f1]
        for stage, image in zip(self.stages.values(), images[1:], strict=True):
            maps.append(_resize(stage(image), f1))  # (B, C_s, h, w)
        x = self.integration(maps)
        return x.permute(0, 2, 3, 1) if self.nhwc else x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, num_features, h, w) → (B, num_classes), or (B, head_hidden_size) with `pre_logits`."""
        head = self.backbone.forward_head if self.head is None else self.head
        return head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) → (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    # ---- state dict: every tensor once

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for key, owner in shared_keys(self.stages, self.backbone):
            if f"{prefix}backbone.{owner}" in state_dict:
                state_dict[f"{prefix}stages.{key}"] = state_dict[f"{prefix}backbone.{owner}"]
        super()._load_from_state_dict(state_dict, prefix, *args)


def _drop_shared(model: WsmsNet, state_dict: dict[str, Any], prefix: str, _metadata: Any) -> None:
    for key, _ in shared_keys(model.stages, model.backbone):
        state_dict.pop(f"{prefix}stages.{key}", None)  # None: buffers that are not persistent


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise UserError(f"{name} must be one of {', '.join(get_args(choices))}; not {value!r}")


def _choose_levels(backbone: TimmModel, stages: int | None) -> list[Level]:
    found = levels(backbone)
    if stages is None:
        stages = min(3, len(found))
    if not 1 <= stages <= len(found):
        raise UserError(f"stages must be 1 to {len(found)}, the levels of this backbone; not {stages}")
    return found[:stages]


def _format(backbone: TimmModel) -> str:
    fmt = getattr(backbone, "output_fmt", "NCHW")
    return str(getattr(fmt, "value", fmt)).upper()


def _resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _remove_head(backbone: TimmModel) -> None:
    """Remove all that `forward_features` does not use, so that every parameter left gets a gradient."""
    backbone.reset_classifier(0, "")
    probe = copy.deepcopy(backbone).to("meta")
    size = backbone.pretrained_cfg["input_size"][1:]
    used = _reached(probe.forward_features(torch.zeros(2, backbone.in_chans, *size, device="meta")))
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
