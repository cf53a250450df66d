"""What several rooms use: temporary eval mode, a model in float32, its cost, some of its maps, one-line errors."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from timm_wsms.errors import UserError


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts `model` into eval mode without gradients, and afterwards every module back into the mode it was in.

    Module by module, since `model.train(was_training)` would unfreeze normalization layers that were frozen on purpose.
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
    """A model that computes without mixed precision, even inside an autocast context."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return self.model(images)


def multiplications(model: nn.Module, input_size: Sequence[int]) -> int:
    """Number of multiplications in one forward pass for one image.

    Convolutions, matrix products and attention, counted by torch's `FlopCounterMode` (which counts an addition for each
    multiplication) in eval mode without compilation. The model's mode and running statistics stay as they are.

    Args:
        model: Takes images (1, channels, height, width).
        input_size: (channels, height, width) in pixels.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode  # 15 ms that `import timm_wsms` does without

    like = next(model.parameters(), torch.empty(0))
    image = torch.zeros(1, *input_size, dtype=like.dtype, device=like.device)
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped; torch runs it eagerly under a counter
    # the counter does not know every fused form of attention
    with sdpa_kernel(SDPBackend.MATH), eval_mode(model), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2


def take_indices(count: int, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
    """Which of a backbone's maps `forward_intermediates` returns, as timm's models count them.

    Args:
        count: Number of maps.
        indices: The last n if an int; all if None; a negative index counts from the end.

    Returns:
        Their positions, in the order of `indices`, and the largest.

    Raises:
        UserError: If there are no such maps.
    """
    wanted = range(count - indices, count) if isinstance(indices, int) else range(count) if indices is None else indices
    taken = [count + index if index < 0 and not isinstance(indices, int) else index for index in wanted]
    if not taken or not all(0 <= index < count for index in taken):
        raise UserError(f"there are {count} maps, counted from 0; indices={indices} asks for others, or for none")
    return taken, max(taken)


def shorten(error: BaseException) -> str:
    """An error's message, or its class if it has none, in one line of at most 160 characters."""
    return textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" …")


def composed(word: str) -> str:
    """A word in Unicode's form NFC: an accented letter is one character, as typed, not two, as macOS names files."""
    return unicodedata.normalize("NFC", word)
