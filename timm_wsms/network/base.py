"""What every network of stages is to timm and to PyTorch: one model, with each tensor once in its state dict."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from timm.layers import ClassifierHead
from timm.models import get_model_input_config
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.network.backbone_traits import TimmModel
from timm_wsms.network.checkpointing_bn import update_statistics_once
from timm_wsms.network.fx import FeatureCall
from timm_wsms.network.pyramid import make_pyramid
from timm_wsms.network.ties import Ties, duplicate_keys
from timm_wsms.timm_private import model_args, update_model_args

GROUPS = {"stem": r"^\w+_embed|^cls_token", "blocks": r"^\w+\.(\d+)"}  # for layer decay, where a backbone names none

REMEDIES = {  # for what a backbone can do and a network of stages cannot
    "set_input_size": "create it with img_size, from its saved weights: timm resamples their position tables",
    "set_distilled_training": "its backbones return one output; train the plain backbone with it",
}
PARTS = ("backbone", "stages", "integration", "feature_pyramid")  # the layers of the network itself, besides `head`
CLASSIFIERS = ("fc", "classifier", "head")  # what timm's models call theirs


def pooling(backbone: TimmModel) -> str | None:
    """timm's name for a backbone's current pooling, read from the head, since that may have been reset."""
    head = getattr(backbone, "head", None)
    for holder, name in (head, "global_pool"), (head, "pool_type"), (backbone, "global_pool"):
        pool = getattr(holder, name, None)
        pool = getattr(pool, "pool_type", pool)  # a pooling layer
        if isinstance(pool, str):
            return pool
    return None


def dropouts(model: Any) -> list[nn.Dropout]:
    """The dropout before a timm model's classifier, where it is a layer; other models apply their `drop_rate`."""
    layers = getattr(model, "head_drop", None), getattr(getattr(model, "head", None), "drop", None)
    return [layer for layer in layers if isinstance(layer, nn.Dropout)]


class MultiStageNet(nn.Module):
    """A timm backbone, which is stage 1, and stages that see the image at other sizes.

    Attributes:
        backbone: Stage 1.
        stages: The others, keys "2", "3" …; each has a `backbone`, which may share tensors with stage 1's, and the
            `factor` of its image.
        head: A head of its own in place of the backbone's; None: the backbone's.
        num_features: Channels of the features.
        has_graph_per_stage: Whether `compile_stages` takes the network.
    """

    backbone: TimmModel
    stages: nn.ModuleDict
    head: ClassifierHead | None
    num_features: int

    def __init__(self, backbone: TimmModel):
        super().__init__()
        self.backbone = backbone
        self.stages = nn.ModuleDict()
        self.head = None
        self.num_features = backbone.num_features
        for layout in ("output_fmt", "feature_dim"):  # timm's, where a backbone's features are not NCHW
            if hasattr(backbone, layout):
                setattr(self, layout, getattr(backbone, layout))
        # timm would read it from the config, which says yes even for a ViT with dynamic_img_size
        self._traits = {"fixed_input_size": get_model_input_config(backbone)["fixed_input_size"]}
        self.backbone_features = FeatureCall(type(backbone))
        self.compiled_stages, self.has_graph_per_stage = False, True
        self.ties: Ties | None = None
        self.register_state_dict_pre_hook(_follow)
        self.register_state_dict_post_hook(_drop_duplicates)
        self.register_load_state_dict_post_hook(_after_loading)

    def __setattr__(self, name: str, value: Any) -> None:
        """As in PyTorch, except for a layer under a name that means one of the backbone's: it would have no effect.

        Raises:
            UserError: Naming the remedy.
        """
        if (
            isinstance(value, nn.Module)
            and name not in PARTS
            and not (name == "head" and hasattr(value, "global_pool"))
        ):
            if name in CLASSIFIERS:
                raise UserError(f"setting model.{name} would have no effect; call model.reset_classifier(num_classes)")
            if name in getattr(self._modules.get("backbone"), "_modules", ()):
                raise UserError(f"setting model.{name} would have no effect; set model.backbone.{name}")
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """As in PyTorch, except that the error for what only the stages' backbones have says where to find it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            backbone = self.__dict__.get("_modules", {}).get("backbone")
            if name.startswith("_") or not hasattr(backbone, name):
                raise
            remedy = REMEDIES.get(name, f"stage 1 has it, as model.backbone.{name}")
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}; {remedy}") from None

    @property
    def starts_as_backbone(self) -> bool:
        """Whether a backbone's weights work in the network without training, its classifier's too."""
        raise NotImplementedError

    def factors(self) -> list[float]:
        """Size of each stage's image divided by the image's, stage 1's first, which is 1."""
        others: list[Any] = [stage.factor for stage in self.stages.values()]
        return [1.0, *others]

    def pyramid(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, H, W) → the images of all stages, stage 1's first, which is the same."""
        if not torch.compiler.is_compiling():
            self.follow()
        return make_pyramid(image, self.factors())

    def backbones(self) -> list[TimmModel]:
        """The modules of all stages, stage 1's first."""
        return [self.backbone, *(stage.backbone for stage in self.stages.values())]

    def stage1_features(self, image: torch.Tensor) -> Any:
        """(B, in_chans, H, W) → the backbone's features."""
        if self.compiled_stages or isinstance(image, torch.fx.Proxy):
            return self.backbone_features(self.backbone, image)
        return self.backbone.forward_features(image)

    def compile_stages(self, **options: Any) -> None:
        """Compile each stage separately, in place; what joins the stages and the heads stay eager.

        `torch.compile(model)` makes one graph of all stages, `model.compile_stages()` one graph per stage. For their
        costs, see docs/performance.md. Parameter names do not change. A copy made afterwards is not compiled.

        Args:
            options: Those of `torch.compile`. `dynamic` defaults to False: each size has a graph of its own.
        """
        self.compiled_stages = True
        for part in (self.backbone_features, *self.stages.values()):
            part.compile(**{"dynamic": False, **options})

    def forward_features(self, x: torch.Tensor) -> Any:
        """(B, in_chans, H, W) → the head's input."""
        raise NotImplementedError

    def forward_head(self, x: Any, pre_logits: bool = False) -> Any:
        """Features → (B, num_classes), or (B, head_hidden_size) with `pre_logits`."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> Any:
        """(B, in_chans, H, W) → (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

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
        return pooling(self.backbone) if self.head is None else self.head.global_pool.pool_type

    def get_classifier(self, name_only: bool = False) -> Any:
        """The classifier, or its name in this model; a tuple for backbones with more than one."""
        classifier = self.backbone.get_classifier() if self.head is None else self.head.fc
        if not name_only:
            return classifier
        names = {id(module): name for name, module in self.named_modules()}
        several = isinstance(classifier, (tuple, list))
        return tuple(names[id(part)] for part in classifier) if several else names[id(classifier)]

    @property
    def drop_rate(self) -> float:
        """Dropout before the classifier."""
        layers = dropouts(self) + dropouts(self.backbone)
        return layers[0].p if layers else self.backbone.drop_rate

    @drop_rate.setter
    def drop_rate(self, rate: float) -> None:
        for part in (self, *self.backbones()):
            for layer in dropouts(part):
                layer.p = rate
        for part in self.backbones():
            part.drop_rate = rate

    @property
    def grad_checkpointing(self) -> bool:
        """Whether activations are recomputed in the backward pass, see `set_grad_checkpointing`."""
        return self.backbone.grad_checkpointing

    @grad_checkpointing.setter
    def grad_checkpointing(self, enable: bool) -> None:
        self.set_grad_checkpointing(enable)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier (0: none), and the pooling unless it is None ("": none)."""
        if self.head is not None:
            self.head.reset(num_classes, global_pool)
        else:
            self._reset_heads([self.backbone], num_classes, global_pool)

    def _reset_heads(self, parts: Sequence[TimmModel], num_classes: int, global_pool: str | None) -> None:
        """Reset the classifiers of some stages, stage 1 first; what timm records about it belongs to the network."""
        before = model_args(self.backbone)
        for part in parts:
            part.reset_classifier(num_classes, *(() if global_pool is None else (global_pool,)))
        found = model_args(self.backbone).items()
        update_model_args(self, **{name: value for name, value in found if before.get(name, ...) != value})

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass; running statistics are still updated once a step."""
        for part in self.backbones():
            part.set_grad_checkpointing(enable)
        update_statistics_once(self, enable)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that timm's optimizers leave out of weight decay, each stage's own among them."""
        names = {f"backbone.{name}" for name in getattr(self.backbone, "no_weight_decay", set)()}
        own = {f"stages.{number}.{name}" for number in self.stages for name in names}
        return names | (own & {name for name, _ in self.named_parameters()})  # shared ones have the backbone's name

    def group_matcher(self, coarse: bool = False) -> Any:
        """Regular expressions for timm's layer-wise grouping: a stage's norms go with the backbone's."""

        def inside(pattern: Any) -> Any:
            if not isinstance(pattern, str):  # a list of (pattern, ordinal)
                return [(inside(one), ordinal) for one, ordinal in pattern]
            pattern = re.sub(r"(^|[|(])\^", r"\1", pattern)  # the anchor moves to the front
            return rf"^(?:stages\.\d+\.)?backbone\.(?:{pattern})"

        own: Any = getattr(self.backbone, "group_matcher", lambda coarse: GROUPS)(coarse=coarse)
        if callable(own):  # CaiT: a function from a parameter's name to its group
            return lambda name: own(re.sub(r"^(stages\.\d+\.)?backbone\.", "", name))
        return {group: inside(pattern) for group, pattern in own.items()}

    # ---- shared tensors: the stages follow the backbone, and a state dict holds each once

    def record_sharing(self) -> None:
        """Record what the stages share with the backbone as what they are to share from now on."""
        self.ties = None
        self.ties = Ties(self)

    def forget_sharing(self) -> None:
        """Allow separate changes to stages and backbone, until `record_sharing`."""
        self.ties = None

    def follow(self, complain: bool = True) -> None:
        """Let the stages follow changes to the backbone's layers; see `timm_wsms.network.ties`."""
        if self.ties is not None:
            self.ties.follow(self, complain)

    def named_modules(self, *args: Any, **kwargs: Any) -> Any:
        """As in PyTorch; code that looks at the modules or parameters sees the stages as they will run."""
        self.follow(complain=False)
        return super().named_modules(*args, **kwargs)

    def train(self, mode: bool = True) -> "MultiStageNet":
        """As in PyTorch."""
        self.follow(complain=False)
        return super().train(mode)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.follow(complain=False)
        for key, owner in duplicate_keys(self):
            if prefix + owner in state_dict:
                leading = state_dict[prefix + owner]
                if self._is_saved(key):
                    state_dict.setdefault(prefix + key, leading)
                found = state_dict.get(prefix + key, leading)  # a running statistic where these are not shared
                if found is not leading and not torch.equal(found, leading):
                    raise UserError(
                        f"these weights have another {key} than {owner}, which this network shares; build it with the "
                        "share_weights and unshared_norms that they were saved with (names of ms_ share nothing)"
                    )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _is_saved(self, key: str) -> bool:
        path, _, name = key.rpartition(".")
        module = self.get_submodule(path)
        return name in module._parameters or name not in module._non_persistent_buffers_set

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "MultiStageNet":
        super()._apply(fn, recurse)
        self.follow()
        return self


def _drop_duplicates(model: MultiStageNet, state_dict: dict[str, Any], prefix: str, _metadata: Any) -> None:
    for key, _ in duplicate_keys(model):
        state_dict.pop(prefix + key, None)  # None: buffers that are not persistent


def _follow(model: MultiStageNet, *_args: Any) -> None:
    model.follow()


def _after_loading(model: MultiStageNet, keys: Any) -> None:
    shared = tuple(key for key, _ in duplicate_keys(model))  # PyTorch's batch norms add a counter if there is none
    keys.unexpected_keys[:] = [key for key in keys.unexpected_keys if not key.endswith(shared)]
    model.follow()
