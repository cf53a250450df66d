"""What several rooms use: evaluation mode for a while, and a model in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts `model` into eval mode without gradients, and every module back into the mode it was in.

    Module by module, since `model.train(was_training)` would wake normalization layers that were frozen on purpose.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Not `inference_mode`: a table the model caches during this pass must stay usable for training.
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


class InFloat32(nn.Module):
    """A model that computes without mixed precision, also inside an autocast context."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return self.model(images)
