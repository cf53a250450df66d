"""Writes the table of the architectures that can be staged: `python -m timm_wsms.registry.stageable`.

Building a network to find out takes a second, and there are over a thousand names, so the answer is kept in
`stageable.json` next to this file. Every name is built and run once, forward and backward, without memory or arithmetic
(on PyTorch's meta device). Run it again for a new version of timm; it continues where it stopped.
"""

import json
import logging
import warnings
from typing import Any

import timm
import torch

from timm_wsms.errors import UserError
from timm_wsms.network.layouts import last_feature
from timm_wsms.network.mean_net import WsmsMeanNet
from timm_wsms.network.stages import is_flat, levels
from timm_wsms.network.wsms_net import WsmsNet
from timm_wsms.registry.why_not import TABLE

UNEVEN = "its maps are neither halved from level to level nor kept at one resolution"
ONE_SIZE_ONLY = "it takes images of one size only"
NO_HEAD = "it has no classification head"
UNUSED = "its blocks mix all resolutions, so that a stage cut from it has parameters without use"


def reason_against(name: str) -> str | None:
    """Why an architecture cannot be staged; None if it can.

    Args:
        name: Name of an architecture in timm's registry.
    """
    reason = _reason(name, torch.device("meta"))
    if reason is not None and "meta tensors" in reason:  # some read a value on their way
        reason = _reason(name, torch.device("cpu"))
    return reason


def reason_against_mean(name: str) -> str | None:
    """Why an architecture that can be staged cannot be averaged over image sizes; None if it can.

    Args:
        name: Name of an architecture in timm's registry.
    """
    with torch.device("meta"):
        try:
            WsmsMeanNet(lambda **arguments: timm.create_model(name, **arguments), pyramid=[1, 0.5])
        except UserError:
            return ONE_SIZE_ONLY
    return None


def _reason(name: str, device: torch.device) -> str | None:
    with device:
        backbone: Any = timm.create_model(name)
        if len(levels(backbone)) < 2 and not is_flat(backbone):
            return UNEVEN
        try:
            network = WsmsNet(lambda **arguments: timm.create_model(name, **arguments) if arguments else backbone)
        except (RuntimeError, AssertionError, ValueError) as error:
            return f"it cannot be built for the smaller images ({_line(error)})"
        cfg = backbone.default_cfg
        side = min(cfg["input_size"][-1], 192 if device.type == "cpu" else 2048)  # the arithmetic is real on a CPU
        reason = _run(network, side)
        if reason not in (None, NO_HEAD) and side % 256 and not cfg.get("fixed_input_size"):
            # some need sides that halve more often than their own
            reason = None if _run(network, -(-side // 256) * 256) is None else reason
        if reason is None and any(parameter.grad is None for parameter in network.stages.parameters()):
            return UNUSED
        return reason


def _run(network: WsmsNet, side: int) -> str | None:
    """Run a network forward and backward on square images; returns why it cannot be, or None."""
    try:
        features: Any = network.forward_features(torch.zeros(2, 3, side, side))
    except (RuntimeError, AssertionError, ValueError) as error:
        return f"its stages cannot take the smaller images ({_line(error)})"
    try:
        network.forward_head(features, pre_logits=True)
    except (NotImplementedError, TypeError):
        return NO_HEAD
    last_feature(features).sum().backward()
    return None


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def main() -> None:
    """Check every architecture that the table does not hold yet for this version of timm."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    if table.get("timm") != timm.__version__:
        table = {"timm": timm.__version__, "stageable": [], "not_stageable": {}, "not_mean": {}}
    ours = {*timm.list_models(module="wsms")}
    for name in timm.list_models():
        if name in ours or name in table["stageable"] or name in table["not_stageable"]:
            continue
        reason = reason_against(name)
        if reason is None:
            table["stageable"].append(name)
            if reason := reason_against_mean(name):
                table["not_mean"][name] = reason
        else:
            table["not_stageable"][name] = reason
        print(name, reason or "", flush=True)
        TABLE.write_text(json.dumps(table, indent=1) + "\n")
    print(f"{len(table['stageable'])} architectures can be staged, {len(table['not_stageable'])} cannot")
    print(f"{len(table['not_mean'])} of those that can cannot be averaged over image sizes")


if __name__ == "__main__":
    main()
