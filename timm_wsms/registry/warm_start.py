"""Tells the two kinds of checkpoint apart: a backbone's own, which a WSMS-Net can start from, and a WSMS-Net's."""

import dataclasses
import logging
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from timm.models import PretrainedCfg
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.hub import download, published
from timm_wsms.hub import errors as hub_errors
from timm_wsms.network.base import MultiStageNet
from timm_wsms.network.weight_sharing import resample

_logger = logging.getLogger(__name__)
WEIGHTS = "model.safetensors"  # of a checkpoint folder


def only_safetensors(cfg: PretrainedCfg) -> PretrainedCfg:
    """The config, changed so that of a checkpoint folder (`local-dir:`, `hf-hub:`) nothing but safetensors is read.

    Raises:
        UserError: If a local folder has none.
    """
    if cfg.source == "local-dir" and not (Path(str(cfg.file)) / WEIGHTS).is_file():
        raise UserError(
            f"{cfg.file} has no {WEIGHTS}, and pickled weights are not read; write the folder with "
            "timm.models.save_for_hf(model, folder, safe_serialization=True)"
        )
    return dataclasses.replace(cfg, hf_hub_filename=WEIGHTS) if cfg.source == "hf-hub" else cfg


def fetch_weights(cfg: PretrainedCfg, cache_dir: Any) -> None:
    """Brings a checkpoint folder's weights from the Hub into the cache, where timm then finds them, and checks them."""
    hub_id = str(cfg.hf_hub_id)
    download.check_cached(hub_id, "config.json", cache_dir)
    download.fetch(hub_id, WEIGHTS, cache_dir, published.sha256(hub_id))


def starts_from_backbone(cfg: PretrainedCfg) -> bool:
    """Whether the weights that a config points to are the backbone's own.

    They then go into the backbone by timm's own loading, every stage's norms start as copies of the backbone's, and
    γ starts from zero, so the logits are the backbone's until the first step of training.

    Args:
        cfg: The resolved config of a `wsms_` model.

    Raises:
        UserError: If a file that is named in the config is missing or broken.
    """
    if cfg.source in ("hf-hub", "local-dir"):  # a checkpoint folder that was written for this very architecture
        return False
    if cfg.state_dict:
        return not _is_wsms(cfg.state_dict)
    if cfg.file:
        return not _is_wsms(_keys(Path(cfg.file)))
    return cfg.has_weights


def _is_wsms(keys: Any) -> bool:
    return any(key.startswith("backbone.") for key in keys)


def _keys(file: Path) -> list[str]:
    if not file.is_file():
        raise UserError(f"there is no checkpoint file {file}; check the path")
    if file.suffix != ".safetensors":  # ours are safetensors always; timm reads its own .pth with weights_only=True
        return []
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except SafetensorError as error:
        raise UserError(f"{file} is not a whole safetensors file ({error}); download or copy it again") from error


def start_fresh(network: MultiStageNet, name: str) -> None:
    """Without a residual the backbone's classifier says nothing about the integrated map: say so, and make it new."""
    if network.starts_as_backbone:
        return
    integration: Any = network.integration
    fresh = ["the integration layer"] if any(True for _ in integration.parameters()) else []
    if network.num_classes:
        if network.head is None:
            network.reset_classifier(network.num_classes)
        fresh.append("the classifier")
    if fresh:
        _logger.warning(f"{name} has no residual, so {' and '.join(fresh)} must be trained before use: random as yet")


def from_backbone(network: MultiStageNet, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load-state-dict hook: a state dict of the backbone becomes one of the network that gives the same logits.

    So `checkpoint_path` and `load_state_dict` take either. What the backbone does not have stays as it is, but γ is 0.
    """
    keys = list(network.backbone.state_dict())
    if not network.starts_as_backbone or any(f"{prefix}{key}" not in state_dict for key in keys):
        return
    own = {key: state_dict.pop(f"{prefix}{key}") for key in keys}
    state_dict |= {f"{prefix}backbone.{key}": tensor for key, tensor in own.items()}
    for key, tensor in network.stages.state_dict().items():
        source = own.get(key.partition(".backbone.")[2], tensor)
        new = source.clone() if source.shape == tensor.shape else resample(source, tensor.shape)
        state_dict[f"{prefix}stages.{key}"] = new
    for part in ("integration", "feature_pyramid"):
        for key, tensor in (getattr(network, part, None) or nn.Module()).state_dict().items():
            new = torch.zeros_like(tensor) if key.endswith("gamma") else tensor
            state_dict[f"{prefix}{part}.{key}"] = new


@contextmanager
def one_line_errors(cfg: PretrainedCfg, name: str, backbone: str) -> Iterator[None]:
    """Says in one line why weights cannot be loaded, and what to do.

    Args:
        cfg: The resolved config of the `wsms_` model.
        name: Of the model.
        backbone: Of its backbone.

    Raises:
        UserError: In place of whatever is raised while timm fetches or loads weights; other errors pass.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not _while_loading(error):
            raise
        where = _where(cfg)
        known = hub_errors.explain(error, where)
        if isinstance(error, (LocalEntryNotFoundError, URLError)) and (known is None or "cannot be reached" in known):
            missing, instead = where, "pretrained_cfg_overlay=dict(file=...)"
            if cfg.file or cfg.state_dict:  # timm's hybrids fetch the weights of their first part by themselves
                missing, instead = f"what {backbone} loads before {where}", "checkpoint_path=..., not pretrained=True"
            message = (
                f"{missing} is not in the cache and cannot be reached; connect once (without HF_HUB_OFFLINE), or give "
                f"{instead}"
            )
        elif known:
            message = known
        elif str(error).startswith("No pretrained weights exist"):
            message = (
                f"there are no weights for {name}; give pretrained_cfg_overlay=dict(file=...), or pretrained=False"
            )
        else:
            what = textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" …")
            message = (
                f"{where} does not load ({what}); give a checkpoint of {backbone}, or a safetensors file of {name}"
            )
        raise UserError(message) from error


def _where(cfg: PretrainedCfg) -> str:
    """What a config's weights are called in a message; in timm's order of preference."""
    if cfg.state_dict:
        return "the given state dict"
    return cfg.file or (f"{cfg.hf_hub_id} of the Hugging Face Hub" if cfg.hf_hub_id else str(cfg.url))


def _while_loading(error: Exception) -> bool:
    """Whether an error comes from fetching or loading weights."""
    return any(
        frame.name in ("load_pretrained", "fetch_weights") for frame in traceback.extract_tb(error.__traceback__)
    )
