"""Tells the two kinds of checkpoint apart: a backbone's own, which a WSMS-Net can start from, and a WSMS-Net's."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from timm.models import PretrainedCfg

from timm_wsms.errors import UserError


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
