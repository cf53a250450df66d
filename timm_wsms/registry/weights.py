"""Where a network's weights come from, and whose they are: a backbone's own, or a multi-stage network's."""

import dataclasses
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import timm
from safetensors import SafetensorError, safe_open
from timm.models import (
    PretrainedCfg,
    clean_state_dict,
    load_state_dict,
    load_state_dict_from_hf,
    resolve_pretrained_cfg,
)
from torch.hub import load_state_dict_from_url

from timm_wsms.errors import UserError
from timm_wsms.foreign import printable, read_json
from timm_wsms.hub import download, published
from timm_wsms.hub.config_check import SOURCES, check_pretrained_cfg
from timm_wsms.registry.loading_errors import explained

_logger = logging.getLogger(__name__)
WEIGHTS = "model.safetensors"  # of a checkpoint folder
FOLDERS = ("hf-hub", "local-dir")  # timm's `source` of what comes from a checkpoint folder
LOCATION = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename")
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # of training scripts, in timm's order of preference
NO_WEIGHTS: dict[str, Any] = {
    "url": "",
    "file": None,
    "hf_hub_id": None,
    "hf_hub_filename": None,
    "custom_load": False,
    "tag": None,
    "source": None,
}


@dataclass(frozen=True)
class LoadPlan:
    """What to load into a network.

    Attributes:
        name: Architecture of the network.
        backbone: Architecture of its backbone.
        cfg: What timm will say about the network, and where the weights are.
        kind: "none": no weights; "backbone": the backbone's own, which timm loads; "network": those of a multi-stage
            network, which `load_network` loads.
        weights: The state dict, if it had to be read to tell whose it is; None for a timm tag, and for formats that the
            backbone reads itself.
        cache_dir: For downloads.
        from_tag: Arguments for building the backbone in any case: some backbones need their tag.
    """

    name: str
    backbone: str
    cfg: PretrainedCfg
    kind: Literal["none", "backbone", "network"]
    weights: dict[str, Any] | None = None
    cache_dir: Any = None
    from_tag: dict[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """What the weights are called in a message."""
        return place(self.cfg)

    def backbone_source(self) -> dict[str, Any]:
        """Arguments with which `timm.create_model` loads the backbone's weights."""
        if self.from_tag:
            return self.from_tag
        own: Any = timm.get_pretrained_cfg(self.backbone)
        names: dict[str, Any] = {"first_conv": own and own.first_conv, "classifier": own and own.classifier}
        return {"pretrained_cfg": dataclasses.replace(self.cfg, architecture=self.backbone, **names).to_dict()}


def plan_weights(
    name: str,
    backbone: str,
    pretrained: bool,
    pretrained_cfg: Any,
    overlay: dict[str, Any] | None,
    cache_dir: Any,
    from_file: Mapping[str, Any],
) -> LoadPlan:
    """Resolve where the weights are, as timm does, and read what is needed to tell whose they are.

    Args:
        name: Architecture of the network.
        backbone: Architecture of its backbone.
        pretrained: Whether weights are requested.
        pretrained_cfg: As in `timm.create_model`: a tag, a config, or None.
        overlay: As in `timm.create_model`.
        cache_dir: As in `timm.create_model`.
        from_file: The arguments found in a checkpoint folder's config.json, if it comes from one.

    Raises:
        UserError: If a file is missing or broken, or a folder's config says what is not allowed.
    """
    if pretrained_cfg is None and name.startswith("ms_"):  # these have no tags of their own
        like: Any = timm.get_pretrained_cfg(f"wsms_{backbone}")
        pretrained_cfg = dataclasses.replace(like, architecture=name, **NO_WEIGHTS)
    if isinstance(pretrained_cfg, dict) and pretrained_cfg.get("source") in SOURCES:  # read from a folder
        check_pretrained_cfg(pretrained_cfg, from_file)
    given = dataclasses.asdict(pretrained_cfg) if isinstance(pretrained_cfg, PretrainedCfg) else pretrained_cfg
    cfg = resolve_pretrained_cfg(name, given, overlay)
    from_tag = {}
    if cfg.source is None and (given is None or isinstance(given, str)):  # what has been published is not a timm tag
        from_tag = {"pretrained_cfg": given, "pretrained_cfg_overlay": overlay}
    if not pretrained:
        return LoadPlan(name, backbone, cfg, "none", from_tag=from_tag)
    if cfg.source in FOLDERS:  # written for this very architecture
        cfg = _only_safetensors(cfg)
        with explained(place(cfg), name, backbone):
            return LoadPlan(name, backbone, cfg, "network", _read_folder(cfg, cache_dir), cache_dir)
    if not cfg.has_weights and not cfg.state_dict:
        raise UserError(
            f"there are no weights for {name}; give pretrained_cfg_overlay=dict(file=...), or pretrained=False"
        )
    if cfg.custom_load or _is_of_a_tag(cfg, name):  # a format of the backbone's own; timm's tags hold backbones
        return LoadPlan(name, backbone, cfg, "backbone", None, cache_dir, from_tag)
    with explained(place(cfg), name, backbone):
        weights = _read(cfg, cache_dir)
    if cfg.file and not cfg.state_dict:
        _warn_of_another(Path(cfg.file), name, backbone)
    if any(key.startswith("backbone.") for key in weights):
        return LoadPlan(name, backbone, cfg, "network", weights, cache_dir, from_tag)
    if cfg.state_dict:  # timm takes it as it is, with its prefixes
        cfg = dataclasses.replace(cfg, state_dict=weights)
        from_tag = from_tag and {**from_tag, "pretrained_cfg_overlay": {**(overlay or {}), "state_dict": weights}}
    return LoadPlan(name, backbone, cfg, "backbone", weights, cache_dir, from_tag)


def _warn_of_another(file: Path, name: str, backbone: str) -> None:
    """Warn if a file is in the checkpoint folder of another architecture, whose tensors may have the same shapes."""
    config = file.with_name("config.json")
    if not config.is_file():
        return
    with suppress(UserError):  # it may be anything
        found = read_json(config)
        theirs = found.get("architecture") if isinstance(found, dict) else None
        if isinstance(theirs, str) and theirs not in (name, backbone, f"wsms_{backbone}", f"wsmean_{backbone}"):
            _logger.warning(f"{file}: {config.name} beside it says that it is for {printable(theirs)}, not for {name}")


def place(cfg: PretrainedCfg) -> str:
    """The name of a config's weights in messages; in timm's order of preference."""
    if cfg.state_dict:
        return "the given state dict"
    return cfg.file or (f"{cfg.hf_hub_id} of the Hugging Face Hub" if cfg.hf_hub_id else str(cfg.url))


def _is_of_a_tag(cfg: PretrainedCfg, name: str) -> bool:
    """Whether a config points to what the tag of its name points to: then its weights are the backbone's."""
    tags = timm.models.get_arch_pretrained_cfgs(name)
    own = tags.get(f"{name}.{cfg.tag}" if cfg.tag else name)
    return own is not None and all(getattr(cfg, key) == getattr(own, key) for key in LOCATION)


def _only_safetensors(cfg: PretrainedCfg) -> PretrainedCfg:
    """The config, changed so that only safetensors are read from a checkpoint folder."""
    if cfg.source == "local-dir" and not (Path(str(cfg.file)) / WEIGHTS).is_file():
        raise UserError(
            f"{cfg.file} has no {WEIGHTS}, and pickled weights are not read; write the folder with "
            "timm.models.save_for_hf(model, folder, safe_serialization=True)"
        )
    return dataclasses.replace(cfg, hf_hub_filename=WEIGHTS) if cfg.source == "hf-hub" else cfg


def _read_folder(cfg: PretrainedCfg, cache_dir: Any) -> dict[str, Any]:
    """The weights of a checkpoint folder, from the Hub if they are there."""
    if cfg.source == "local-dir":
        return _read_file(Path(str(cfg.file)) / WEIGHTS)
    hub_id = str(cfg.hf_hub_id)
    download.check_cached(hub_id, "config.json", cache_dir)
    return _read_file(download.fetch(hub_id, WEIGHTS, cache_dir, published.sha256(hub_id)))


def _read(cfg: PretrainedCfg, cache_dir: Any) -> dict[str, Any]:
    """The state dict that a config points to, in timm's order of preference."""
    if cfg.state_dict:
        return _unwrapped(cfg.state_dict)
    if cfg.file:
        return _read_file(Path(cfg.file))
    if cfg.hf_hub_id:
        filename: dict[str, Any] = {"filename": cfg.hf_hub_filename} if cfg.hf_hub_filename else {}
        return _unwrapped(load_state_dict_from_hf(cfg.hf_hub_id, cache_dir=cache_dir, **filename))
    return _unwrapped(
        load_state_dict_from_url(str(cfg.url), model_dir=cache_dir, map_location="cpu", weights_only=True)
    )


def _read_file(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"there is no checkpoint file {file}; check the path")
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise UserError(
                f"{file} is not a complete safetensors file ({error}); download or copy it again"
            ) from error
    return load_state_dict(str(file))  # with weights_only=True


def _unwrapped(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict inside what a training script saved, as `timm.models.load_state_dict` finds it in a file."""
    wrapper = next((key for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)), None)
    return clean_state_dict(dict(checkpoint[wrapper] if wrapper else checkpoint))
