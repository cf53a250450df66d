"""Arithmetic of the networks of benchmarks/photographs.py, relative to plain EfficientNet-lite0 at 128 pixels."""

from __future__ import annotations

import functools

import timm

import timm_wsms  # noqa: F401
from benchmarks.photographs import FLOWERS
from timm_wsms.evaluation.cost import multiplications

PLAIN, SIDE = "tf_efficientnet_lite0", 128


def backbone_of(form: str) -> str:
    return FLOWERS[form].model.removeprefix("wsms_")


@functools.cache
def count(backbone: str, side: int) -> int:
    """Multiplications of a backbone for five classes on a square image."""
    model = timm.create_model(backbone, num_classes=5).eval()
    return multiplications(model, (3, side, side))


def relative(form: str, factors: tuple[float, ...]) -> float:
    """What a form's backbone takes on its image at some sizes, each a factor of the form's own."""
    sides = [round(FLOWERS[form].side * factor) for factor in factors]
    return sum(count(backbone_of(form), side) for side in sides) / count(PLAIN, SIDE)
