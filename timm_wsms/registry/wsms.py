"""Names: `wsms_<backbone>`, `ms_<backbone>` and `wsmean_<backbone>` in timm's registry, as module "wsms"."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import timm
from timm.models import DefaultCfg, PretrainedCfg, register_model
from torch import nn

from timm_wsms import backbones, timm_private
from timm_wsms.errors import UserError
from timm_wsms.hub.published import Published, published
from timm_wsms.registry.arguments import PREFIXES
from timm_wsms.registry.create import create, inside
from timm_wsms.registry.why_not import not_mean, not_stageable

# For a network with a head of its own, since its integrated map is wider than the backbone's
HEAD_CLASSIFIER = "head.fc"
DOCS = {
    "wsms_": "`{}` as a weight-shared multi-stage network; see `WsmsNet`.",
    "ms_": "`{}` as a multi-stage network; see `WsmsNet`.",
    "wsmean_": "`{}` on the image at several sizes, its logits averaged; see `WsmsMeanNet`.",
}

default_cfgs: dict[str, DefaultCfg] = {}  # timm's register_model reads a module's `default_cfgs` and `__all__`
__all__ = ["register"]


def register(backbone: str) -> None:
    """Add `wsms_<backbone>`, `ms_<backbone>` and `wsmean_<backbone>` to timm's registry.

    Whether the backbone can be staged is checked when a model is built, so this costs nothing.

    Args:
        backbone: Name of an architecture that is registered with timm, without a pretrained tag.

    Raises:
        UserError: If timm does not know the name.
    """
    if not timm.is_model(backbone):
        raise UserError(f"timm has no model {backbone!r}; register it with timm.models.register_model first")
    _register(backbone, PREFIXES)


def register_all() -> None:
    """Register every timm architecture that can be staged, or that is newer than the table of those that can."""
    ours = tuple(PREFIXES)
    for backbone in timm.list_models():
        if not backbone.startswith(ours) and backbone not in not_stageable():
            _register(backbone, [prefix for prefix in PREFIXES if prefix != "wsmean_" or backbone not in not_mean()])


def _register(backbone: str, prefixes: Iterable[str]) -> None:
    tags = _tags(backbone)
    for prefix in prefixes:
        name = f"{prefix}{backbone}"
        if prefix != "ms_":  # which has none of its own
            default_cfgs[name] = _default_cfg(name, tags, prefix == "wsms_" and backbone in backbones.CIFAR_NAMES)
        register_model(_entrypoint(name, prefix, backbone))
        # timm lists every name here, but these are not attributes of this module; and it searches the list for each new
        # one, which for 4,000 would take as long as all the rest
        del __all__[1:]


def _tags(backbone: str) -> dict[str, PretrainedCfg]:
    """The backbone's tags: where timm keeps the weights of each, and modules by their names in a network."""
    return {tag: _inside_network(cfg) for tag, cfg in timm_private.tags(backbone).items()} or {"": PretrainedCfg()}


def _inside_network(cfg: PretrainedCfg) -> PretrainedCfg:
    own = PretrainedCfg.__new__(PretrainedCfg)  # `replace` takes 20 µs, and there are 2,000 tags
    vars(own).update(vars(cfg), first_conv=inside(cfg.first_conv), classifier=inside(cfg.classifier))
    return own


def _default_cfg(name: str, tags: dict[str, PretrainedCfg], own_head: bool) -> DefaultCfg:
    """timm's tags of a name: first the checkpoints that have been published, then the backbone's tags."""
    if own_head:
        tags = {tag: replace(cfg, classifier=HEAD_CLASSIFIER) for tag, cfg in tags.items()}
    cfgs = {entry.tag: entry.pretrained_cfg() for entry in _published().get(name, ())}
    cfgs |= {tag: cfg for tag, cfg in tags.items() if tag not in cfgs}
    return DefaultCfg(deque(cfgs), cfgs, any(cfg.has_weights for cfg in cfgs.values()))


@cache
def _published() -> dict[str, list[Published]]:
    """The published checkpoints of each name."""
    return {entry.name: [one for one in published() if one.name == entry.name] for entry in published()}


def _entrypoint(name: str, prefix: str, backbone: str) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> Any:
        return create(name, backbone, pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = DOCS[prefix].format(backbone)
    return entrypoint
