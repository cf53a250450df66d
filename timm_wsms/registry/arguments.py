"""The arguments of a network: which are its own, the defaults of each name, and whether they fit together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from timm_wsms import timm_private
from timm_wsms.errors import UserError, check_choice
from timm_wsms.hub.config_check import check_model_args

NETWORK_ARGS: dict[str, tuple[type, ...]] = {
    "fusion": (str,),
    "stages": (int,),
    "pyramid": (list, tuple),
    "integration": (str,),
    "integration_channels": (int,),
    "residual": (bool,),
    "integrated_indices": (list, tuple),
    "share_weights": (bool,),
    "unshared_norms": (str,),
}
Fusion = Literal["concat", "mean"]
CONCAT_ARGS = ("integration", "integration_channels", "residual", "integrated_indices")  # only for fusion="concat"
# What a name's prefix says about the arguments. `wsmean_` is the recommended form. Published checkpoints are loaded by
# these names, so what one stands for must never change: a better form gets a name of its own.
PREFIXES: dict[str, dict[str, Any]] = {
    "wsms_": {"share_weights": True},
    "ms_": {"share_weights": False},
    "wsmean_": {
        "share_weights": True,
        "fusion": "mean",
        "pyramid": [1, 0.5],
        "unshared_norms": "statistics",
    },
}


@dataclass(frozen=True)
class Arguments:
    """The user's arguments, sorted and checked.

    Attributes:
        fusion: Which of the two forms.
        network: Arguments of `WsmsNet` or `WsmsMeanNet`.
        backbone: All others, `features_only` and `out_indices` among them.
    """

    fusion: Fusion
    network: dict[str, Any]
    backbone: dict[str, Any]

    @property
    def features_only(self) -> bool:
        """Whether the maps of all levels are requested."""
        return bool(self.backbone.get("features_only"))


def prefix_of(name: str) -> str | None:
    """The prefix of a multi-stage network's name; None for any other name."""
    return next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)


def sort_arguments(name: str, given: Mapping[str, Any], from_file: Mapping[str, Any]) -> Arguments:
    """Add the name's defaults to the arguments, check them, and separate the network's from the backbone's.

    Args:
        name: Name of the architecture, with its prefix.
        given: Keyword arguments of `timm.create_model`, including those of a checkpoint folder.
        from_file: The arguments found in a checkpoint folder's config.json.

    Raises:
        UserError: Naming the argument.
    """
    check_model_args(from_file, NETWORK_ARGS)
    arguments = {key: value for key, value in given.items() if key not in NETWORK_ARGS or value is not None}
    _check_types(arguments)
    defaults = PREFIXES[prefix_of(name) or "wsms_"]
    if defaults.get("fusion", "concat") == "mean" and arguments.get("fusion", "mean") != "mean":
        raise UserError(
            f"{name} averages the stages' logits; for fusion={arguments['fusion']!r} take "
            f"wsms_{name.removeprefix('wsmean_')}"
        )
    if "stages" in arguments:  # then the pyramid is as many halvings
        defaults = {key: value for key, value in defaults.items() if key != "pyramid"}
    arguments = {**defaults, **arguments}
    _check_fusion(arguments)
    network = {key: arguments.pop(key) for key in NETWORK_ARGS if key in arguments}
    if arguments.get("features_only") and arguments.pop("feature_cls", "getter") != "getter":
        raise UserError(f"features_only of {name} goes through forward_intermediates; leave out feature_cls")
    return Arguments(network.pop("fusion", "concat"), network, arguments)


def record_form(model: Any, arguments: Arguments) -> None:
    """Let a saved config state the pyramid and the norms, so that it means the same if defaults change.

    A config without them was saved before they were stated: 1, 0.5, 0.25 and "batch", the defaults of `wsms_<name>`.

    Args:
        model: A network of stages, before timm saves it.
        arguments: Those it was built with.
    """
    pyramid = [int(factor) if factor == int(factor) else factor for factor in model.factors()]
    norms = arguments.network.get("unshared_norms", "batch")
    form = {"fusion": "mean"} if arguments.fusion == "mean" else {}
    timm_private.update_model_args(model, **form, pyramid=pyramid, unshared_norms=norms)


def _check_types(arguments: Mapping[str, Any]) -> None:
    for key, kinds in NETWORK_ARGS.items():
        value = arguments.get(key)
        if value is not None and type(value) not in kinds:
            raise UserError(f"{key} must be {kinds[0].__name__}, not {value!r}")


def _check_fusion(arguments: Mapping[str, Any]) -> None:
    fusion = arguments.get("fusion", "concat")
    check_choice("fusion", fusion, Fusion)
    if fusion == "mean" and (unfit := [key for key in CONCAT_ARGS if arguments.get(key) is not None]):
        raise UserError(f"fusion='mean' averages logits and integrates no maps; leave out {', '.join(unfit)}")
