"""What a checkpoint folder's config.json may say. It may come from a stranger, so all that is not known is refused."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from timm.layers import get_act_layer, get_norm_layer

from timm_wsms.errors import UserError

LOCATIONS = ("url", "file", "hf_hub_id", "hf_hub_filename", "state_dict", "custom_load")
SOURCES = {"hf-hub": "hf_hub_id", "local-dir": "file"}  # timm's name for where a folder is: the field it then fills in
LARGEST = 2**16  # of channels or classes: more would only fill the memory
DEEPEST = 256  # blocks in all
LARGEST_SIDE = 2**12  # of an image, in pixels: likewise


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _rate(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1


def _size(value: Any) -> bool:
    sides = value if isinstance(value, (list, tuple)) else (value, value)
    return len(sides) == 2 and all(_count(side) and 0 < side <= LARGEST_SIDE for side in sides)


def _widths(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and 0 < len(value) <= 16 and all(_count(n) and 0 < n <= 1024 for n in value)


def _flag(value: Any) -> bool:
    return type(value) is bool


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST


def _counts(value: Any) -> bool:
    each = value if isinstance(value, (list, tuple)) else (value,)
    return 0 < len(each) <= 16 and all(_count(number) for number in each)


def _depths(value: Any) -> bool:
    return _counts(value) and sum(value if isinstance(value, (list, tuple)) else (value,)) <= DEEPEST


def _layer(find: Callable[[str], Any]) -> Callable[[Any], bool]:
    """Whether timm finds a layer under a name."""

    def known(value: Any) -> bool:
        try:
            return type(value) is str and find(value) is not None
        except (KeyError, AssertionError):
            return False

    return known


# Backbone arguments that a file may give; a user's own call may give whatever the backbone takes.
BACKBONE_ARGS: dict[str, Callable[[Any], bool]] = {
    "num_classes": _count,
    "in_chans": lambda value: _count(value) and value > 0,
    "global_pool": lambda value: type(value) is str,
    "img_size": _size,
    "drop_rate": _rate,
    "drop_path_rate": _rate,
    **dict.fromkeys(("dynamic_img_size", "strict_img_size", "class_token", "no_embed_class", "qk_norm"), _flag),
    **dict.fromkeys(("fc_norm", "use_fc_norm", "distillation"), _flag),  # timm's `reset_classifier` records these
    **dict.fromkeys(("init_values", "bn_eps", "bn_momentum", "mlp_ratio"), _number),
    **dict.fromkeys(("reg_tokens", "embed_dim", "dims", "num_heads", "window_size"), _counts),
    **dict.fromkeys(("depth", "depths"), _depths),
    "act_layer": _layer(get_act_layer),
    "norm_layer": _layer(get_norm_layer),
    "pad_type": lambda value: value in ("", "same", "valid"),
    "output_stride": lambda value: value in (8, 16, 32),
    "patch_size": _size,
    "channels": _widths,
}


def check_model_args(arguments: Mapping[str, Any], network_args: Collection[str]) -> None:
    """Check the names and values of a file's `model_args`.

    Args:
        arguments: As the file has them.
        network_args: Names of the network's own arguments, whose types are checked elsewhere.

    Raises:
        UserError: Naming the argument.
    """
    for key, value in arguments.items():
        if key not in network_args and key not in BACKBONE_ARGS:
            raise UserError(
                f"the config's model_args have an unknown argument {key!r}, which only the caller may give; "
                "take it out of config.json and give it to create_model"
            )
        if key in BACKBONE_ARGS and value is not None and not BACKBONE_ARGS[key](value):
            raise UserError(f"the config's model_args say {key} = {str(value)[:60]!r}, which no network accepts")
        numbers = value if isinstance(value, (list, tuple)) else (value,)
        if any(type(number) in (int, float) and number > LARGEST for number in numbers):
            raise UserError(f"the config's model_args say {key} = {value}; nothing above {LARGEST} is built")


def check_pretrained_cfg(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Check what a file says about its weights: they are in the same folder and have the shape it says.

    Args:
        config: `pretrained_cfg`, with the folder's path filled in by timm.
        arguments: `model_args` of the same file.

    Raises:
        UserError: Naming the field.
    """
    for key in LOCATIONS:
        if config.get(key) and key != SOURCES[config["source"]]:
            raise UserError(f"the config's pretrained_cfg has {key!r}, but weights are read only from the same folder")
    classes = config.get("num_classes", 0)
    if not _count(classes) or arguments.get("num_classes", classes) != classes:
        raise UserError(
            f"the config says num_classes {str(classes)[:60]!r}; model_args say another, or it is not a number"
        )
    shape = config.get("input_size", (1, 1, 1))
    if not (isinstance(shape, (list, tuple)) and len(shape) == 3 and _count(shape[0]) and _size(shape[1:])):
        raise UserError(f"the config says input_size {str(shape)[:60]!r}, not [channels, height, width]")
    for key in ("mean", "std"):
        values = config.get(key, ())
        if not (isinstance(values, (list, tuple)) and all(type(value) in (int, float) for value in values)):
            raise UserError(f"the config says {key} {str(values)[:60]!r}, not a number for each channel")
    for key in ("first_conv", "classifier"):
        names = config.get(key) or ()
        names = names if isinstance(names, (list, tuple)) else (names,)
        if not all(type(name) is str for name in names):
            raise UserError(f"the config says {key} {str(config[key])[:60]!r}, not the name of a module")
