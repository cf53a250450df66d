"""Why there is no multi-stage network of a name, and what the commands say about names that timm does not know."""

import difflib
import json
from functools import cache
from pathlib import Path
from typing import Any

import timm
from timm.models import get_arch_name, get_deprecated_models

from timm_wsms.errors import UserError
from timm_wsms.registry.arguments import prefix_of

TABLE = Path(__file__).parent / "stageable.json"  # written by `python -m timm_wsms.registry.stageable`


def why_not(name: str) -> str | None:
    """Why there is no multi-stage network of this name; None if there is one.

    ```python
    timm_wsms.why_not("wsms_crossvit_9_240")
    # 'crossvit_9_240 cannot be staged: its maps are neither halved from level to level nor kept at one resolution'
    ```

    Args:
        name: `wsms_<backbone>`, `ms_<backbone>`, `wsmean_<backbone>`, or the backbone alone, which asks about the
            first. With or without a pretrained tag.
    """
    architecture = get_arch_name(name)
    prefix = prefix_of(architecture)
    if prefix is None:
        prefix, architecture = "wsms_", f"wsms_{architecture}"
    if timm.is_model(architecture):
        return None
    backbone = architecture.removeprefix(prefix)
    if reason := not_stageable().get(backbone):
        return f"{backbone} cannot be staged: {reason}"
    if prefix == "wsmean_" and (reason := not_mean().get(backbone)):
        return f"{backbone} cannot be averaged over image sizes: {reason}"
    if not timm.is_model(backbone):
        return f"timm {timm.__version__} has no model {backbone}"
    if backbone in (deprecated := get_deprecated_models()):
        return f"{backbone} is a deprecated name in timm; take {deprecated[backbone] or 'another backbone'}"
    return f"{backbone} was registered after timm_wsms was imported; call timm_wsms.register({backbone!r})"


def check_name(name: str) -> None:
    """Check that timm knows a model of this name, which needs neither data nor a network.

    Args:
        name: As `timm.create_model` takes it.

    Raises:
        UserError: If it does not; the message names the reason or the nearest names.
    """
    if ":" in name or timm.is_model(name):  # `hf-hub:` and `local-dir:` name places, not models
        return
    nearest = difflib.get_close_matches(name, timm.list_models(), n=3)
    if prefix_of(name) and (reason := why_not(name)) and "has no model" not in reason:
        raise UserError(f"there is no model {name}: {reason}")
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else 'see timm.list_models("wsms_*")'
    raise UserError(f"there is no model {name}; {hint}")


@cache
def table() -> dict[str, Any]:
    """Which names can be staged, and why the others cannot."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def not_stageable() -> dict[str, str]:
    """For each backbone that cannot be staged, why."""
    return table()["not_stageable"]


def not_mean() -> dict[str, str]:
    """For each backbone that can be staged, but not with `fusion="mean"`, why."""
    return table().get("not_mean", {})
