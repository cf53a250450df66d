"""Adapters (PEFT's LoRA and the like) on a network whose stages share weights: `timm_wsms.tie_adapters(model)`."""

from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.network.base import MultiStageNet


def tie_adapters(model: nn.Module) -> int:
    """Give every shared weight one adapter, which all stages use, so that merging adds its change once.

    PEFT puts an adapter on every module that it finds, so a weight that three stages share gets three, and
    merging would add all three changes to it. The adapters of the backbone's layers are kept, the stages' are dropped.

    A network ties its adapters automatically when it runs, is saved, or lists its parameters. Call this right after
    `get_peft_model`, or after adding an adapter, to tie and check them at once.

    Args:
        model: A network of `wsms_<name>`, or a PEFT model around it. It is changed in place.

    Returns:
        The number of layers with adapters that serve more than one stage.

    Raises:
        UserError: If the model neither is nor holds such a network, or has no adapters.
    """
    networks = [module for module in model.modules() if isinstance(module, MultiStageNet)]
    if not networks:
        raise UserError(f"{type(model).__name__} holds no wsms_<name> network; give tie_adapters PEFT's model")
    for network in networks:
        network.follow()
    if not any(_is_adapter(module) for network in networks for module in network.modules()):
        raise UserError("the model has no adapters; call peft.get_peft_model(model, config) first")
    tied = 0
    for network in networks:
        lead = {id(module) for module in network.backbone.modules() if _is_adapter(module)}
        tied += len(lead & {id(module) for stage in network.stages.values() for module in stage.modules()})
    return tied


def _is_adapter(module: nn.Module) -> bool:
    return hasattr(module, "merged_adapters")  # every tuner layer of PEFT's
