"""Arithmetic of the networks of benchmarks/photographs.py, relative to the plain network at 128 pixels."""

from __future__ import annotations

import functools

import timm

import timm_wsms  # noqa: F401
from benchmarks.photographs import FORMS
from timm_wsms.evaluation.cost import multiplications

PLAIN, SIDE = "tf_efficientnet_lite0", 128
CLASSES = {"flowers": 5, "imagenette": 10}


def backbone_of(form: str, data: str = "flowers") -> str:
    return FORMS[data][form].model.removeprefix("wsms_")


@functools.cache
def count(backbone: str, side: int, classes: int = 5) -> int:
    """Multiplications of a backbone on a square image."""
    model = timm.create_model(backbone, num_classes=classes).eval()
    return multiplications(model, (3, side, side))


def plain_cost(data: str) -> int:
    """Multiplications of the plain network, which are cost 1."""
    return count(backbone_of("plain", data), FORMS[data]["plain"].side, CLASSES[data])


def relative(form: str, factors: tuple[float, ...], data: str = "flowers") -> float:
    """What a form's backbone takes on its image at some sizes, each a factor of the form's own."""
    sides = [round(FORMS[data][form].side * factor) for factor in factors]
    return sum(count(backbone_of(form, data), side, CLASSES[data]) for side in sides) / plain_cost(data)
