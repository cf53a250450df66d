"""Fine-tuning in two parts: first what is new, the integration layer and the classifier, then everything."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from timm_wsms.training.builders import classifiers
from timm_wsms.training.settings import Settings


class Freeze:
    """Decides which parts of a network are trained in which epoch, and freezes the others.

    timm's own `freeze` does not fit: it replaces norms by modules in which parameters are buffers, so the optimizer
    would lose them, the stages would lose what they share, and the state dict its keys.

    Args:
        network: any timm model. Not modified.
        settings: `freeze` and `freeze_epochs` are used.

    Attributes:
        norms: the norms that have to be in eval mode while the others train; they keep their running statistics.
    """

    def __init__(self, network: nn.Module, settings: Settings):
        self.norms: list[nn.Module] = []
        self._until = 0 if settings.freeze == "none" else settings.freeze_epochs or settings.epochs
        new = {id(module) for part in new_parts(network) for module in part.modules()}
        old = [module for module in network.modules() if id(module) not in new]
        self._old_norms = [module for module in old if "running_mean" in module._buffers]
        parameters = {id(p): p for module in old for p in module.parameters(recurse=False) if p.requires_grad}
        self._old_parameters = list(parameters.values())
        self._frozen = False

    def set_epoch(self, epoch: int) -> bool:
        """Freezes or thaws; returns whether that has changed what is trained.

        Args:
            epoch: counted from 1.
        """
        frozen = epoch <= self._until
        if frozen == self._frozen:
            return False
        self._frozen = frozen
        self.norms = self._old_norms if frozen else []
        for parameter in self._old_parameters:
            parameter.requires_grad_(not frozen)
        return True


def new_parts(network: Any) -> Iterator[nn.Module]:
    """What a network has and its backbone does not: the integration layer, and the classifiers for other classes."""
    yield from classifiers(network)
    if (integration := getattr(network, "integration", None)) is not None:
        yield integration
