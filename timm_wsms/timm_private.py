"""Every private timm name that this package uses, each with the reason; no other module imports one.

timm may change these in any release. tests/test_timm_private.py checks what we rely on, and fails with "timm changed
X". What timm 1.0.31 exports under a public name is imported from there.
"""

from typing import Any

from timm.models import PretrainedCfg
from timm.models import _registry as registry

# The class that timm's builder recognizes as "reads maps by `forward_intermediates`"; only its name "getter" is public,
# and a class of our own lets `recalibrate` tell such a model from others.
from timm.models._features import FeatureGetterNet as FeatureGetterNet

# The public `save_for_hf` writes the weights too, without metadata and from non-contiguous tensors.
from timm.models._hub import save_config_for_hf as save_config_for_hf

# Adds to the arguments that a saved config states. timm's own models call it; the public names only read them.
from timm.models._input import update_model_args as update_model_args


def tags(name: str) -> dict[str, PretrainedCfg]:
    """An architecture's pretrained tags and their configs, the default first. They are timm's own: don't change them.

    The public `get_arch_pretrained_cfgs` makes deep copies, which for all names take as much time as the rest of
    `import timm_wsms`.

    Args:
        name: Architecture, without a tag.
    """
    entries = registry._model_with_tags.get(name, ())
    return {entry.partition(".")[2]: registry._model_pretrained_cfgs[entry] for entry in entries}


def model_args(model: Any) -> dict[str, Any]:
    """The arguments that timm recorded when it built a model; `get_model_args` adds what is derived from the model."""
    return dict(getattr(model, "_model_args", {}))
