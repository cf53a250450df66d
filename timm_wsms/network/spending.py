"""What a cascade spends: one stage as a module, its MACs, and how many images left at which exit."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.network.pyramid import make_pyramid
from timm_wsms.network.whole_stage import WholeStage
from timm_wsms.utils import multiplications

Size = tuple[int, ...]  # (channels, height, width) of an image


class StageLogits(nn.Module):
    """One stage of a network of averaged logits: the image at its own size → the stage's logits.

    Args:
        part: The stage, or the backbone, which is stage 1.
        factor: Factor of the image's size; the stage resizes the image itself.
    """

    def __init__(self, part: Any, factor: float):
        super().__init__()
        self.part, self.factor = part, factor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) → (B, num_classes)."""
        (resized,) = make_pyramid(image, [self.factor])
        if isinstance(self.part, WholeStage):
            return self.part.backbone.forward_head(self.part(resized))
        return self.part.forward_head(self.part.forward_features(resized))


class Spending:
    """Counts the images that leave at each exit.

    Args:
        stages: In the order in which they run.
        plain: The place of stage 1, the plain backbone, among them.
    """

    def __init__(self, stages: Sequence[StageLogits], plain: int):
        self.stages, self.plain = stages, plain
        self._costs: dict[Size, list[float]] = {}
        self.reset()

    def reset(self) -> None:
        """Start again from zero."""
        self._total: dict[Size, list[int]] = {}
        self._last: dict[Size, list[int]] = {}

    def note(self, size: Size, counts: Sequence[int]) -> None:
        """Add a batch.

        Args:
            size: Size of its images.
            counts: How many of them left at the first exits; none left at exits that are not given.
        """
        every = [*counts, *[0] * (len(self.stages) - len(counts))]
        before = self._total.get(size, [0] * len(every))
        self._total[size] = [old + new for old, new in zip(before, every, strict=True)]
        self._last = {size: every}

    def costs(self, size: Size) -> list[float]:
        """Arithmetic for an image of this size that leaves at each exit, relative to stage 1's."""
        if size not in self._costs:
            # separate modules, since the stages may be compiled
            each = [multiplications(StageLogits(stage.part, stage.factor), size) for stage in self.stages]
            taken = torch.tensor(each, dtype=torch.float64).cumsum(0) / each[self.plain]
            self._costs[size] = taken.tolist()
        return self._costs[size]

    def mean(self, last: bool = False) -> float:
        """Mean MACs of all images, or of those of the last batch, relative to stage 1's.

        Raises:
            UserError: If there were none.
        """
        spent = [
            (count, cost)
            for size, counts in (self._last if last else self._total).items()
            for count, cost in zip(counts, self.costs(size), strict=True)
        ]
        if not (total := sum(count for count, _ in spent)):
            raise UserError("the cascade has not seen an image yet; call it first")
        return sum(count * cost for count, cost in spent) / total

    def counts(self) -> list[int]:
        """How many images left at each exit."""
        return [sum(each) for each in zip(*self._total.values(), strict=True)] or [0] * len(self.stages)

    def summary(self) -> str:
        """How many images left at each exit, and the mean cost, in lines."""
        mean = self.mean()
        counts = self.counts()
        lines = [
            f"exit {number}, after the image × {stage.factor:g}: {count} of {sum(counts)} images"
            for number, (stage, count) in enumerate(zip(self.stages, counts, strict=True), start=1)
        ]
        return "\n".join([*lines, f"mean MACs, with 1 for the plain backbone: {mean:.3f}"])
