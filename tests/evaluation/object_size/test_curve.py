"""Accuracy against object size: known curves come out, and size 1 is what `predict` gives."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from tests.helpers.preprocessing import preprocessing
from timm_wsms.data import DataSettings, Split, make_loader
from timm_wsms.errors import UserError
from timm_wsms.evaluation import predict
from timm_wsms.evaluation.object_size.curve import (
    FACTORS,
    SizePredictions,
    area_weights,
    check_factors,
    compare,
    predict_sizes,
    size_curve,
)
from timm_wsms.object_scaling import rescale_object

CONFIG = preprocessing(16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def squares(n=24):
    """White squares on black; the class is the color of the middle: 0 dark red … 3 bright red."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 30, (n, 16, 16, 3)).astype(np.uint8)
    labels = np.arange(n) % 4
    pixels[:, 5:11, 5:11, 0] = (60 + 60 * labels)[:, None, None]
    return Split("test", labels, ["a", "b", "c", "d"], pixels=pixels)


def loader(split):
    return make_loader(split, DataSettings(), CONFIG, batch_size=7, train=False)


class Middle(nn.Module):
    """Looks at nothing but the middle of the image, so that size does not matter to it."""

    def forward(self, images):
        red = (images[:, 0, 7:9, 7:9].mean((1, 2)) * 0.2 + 0.5) * 255
        return -(red[:, None] - torch.tensor([60.0, 120.0, 180.0, 240.0])).abs()


class Corner(nn.Module):
    """Sees whether the image reaches the corner, so that only size matters to it."""

    def forward(self, images):
        uniform = images[:, 0, :2, :2].flatten(1).std(1) < 1e-3
        return torch.stack([uniform.float(), 1 - uniform.float(), *[torch.zeros(len(images))] * 2], 1)


def test_model_that_ignores_size_has_a_flat_curve(accelerator):
    found = predict_sizes(Middle(), loader(squares()), accelerator, (0.5, 1.0, 2.0, 4.0))
    curve = size_curve(found)
    assert curve.top1 == [100.0] * 4 and curve.consistency == [100.0] * 4
    assert (curve.area, curve.worst, curve.at_one, curve.mean_consistency) == (100.0, 100.0, 100.0, 100.0)
    assert curve.interval == [(100.0, 100.0)] * 4


def test_model_that_sees_size_alone(accelerator):
    found = predict_sizes(Corner(), loader(squares()), accelerator, (0.5, 1.0, 2.0))
    assert (found.predicted[0] == 0).all() and (found.predicted[1] == 1).all()
    curve = size_curve(found)
    assert curve.top1[:2] == [25.0, 25.0] and curve.consistency[:2] == [0.0, 100.0]


def test_size_one_is_what_predict_gives(accelerator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(392, 4))
    split = squares()
    found = predict_sizes(model, loader(split), accelerator, (0.5, 1.0, 2.0))
    plain = predict(model, loader(split), accelerator, len(split))
    for name in ("index", "label"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))
    np.testing.assert_array_equal(found.predicted[found.at_one], plain.predicted)
    images = torch.cat([batch.images for batch in loader(split)])
    for place, factor in enumerate(found.factors):
        with torch.no_grad():
            np.testing.assert_array_equal(found.predicted[place], model(rescale_object(images, factor)).argmax(1))


def test_images_that_cannot_be_decoded_are_left_out_at_every_size(accelerator):
    split, whole = squares(), loader(squares())

    class Skipping:
        split, skipped = whole.split, 0

        def __len__(self):
            return len(whole)

        def __iter__(self):
            for index, images, labels in whole:
                keep = index != 5
                self.skipped += int((~keep).sum())
                yield index[keep], images[keep], labels[keep]

    found = predict_sizes(Middle(), Skipping(), accelerator, (0.5, 1.0))
    np.testing.assert_array_equal(found.index, np.delete(np.arange(len(split)), 5))
    assert found.predicted.shape == (2, len(split) - 1) and found.correct.all()


def by_hand():
    """Four images at three sizes."""
    label = np.array([0, 1, 2, 3])
    predicted = np.array([[0, 0, 0, 0], [0, 1, 2, 0], [0, 1, 0, 0]])
    return SizePredictions((0.5, 1.0, 4.0), np.arange(4), label, predicted)


def test_summary_by_hand():
    curve = size_curve(by_hand())
    assert curve.top1 == [25.0, 75.0, 50.0] and curve.at_one == 75.0
    assert curve.consistency == [50.0, 100.0, 75.0] and curve.mean_consistency == 62.5
    assert (curve.worst, curve.worst_factor) == (25.0, 0.5)
    assert curve.area == pytest.approx((50.0 * 1 + 62.5 * 2) / 3)  # one halving, two doublings
    assert curve.area_interval[0] < curve.area < curve.area_interval[1]


def test_area_is_numpys_trapezoids():
    heights = np.random.default_rng(0).random(len(FACTORS))
    width = math.log(FACTORS[-1] / FACTORS[0])
    assert area_weights(FACTORS) @ heights == pytest.approx(np.trapezoid(heights, np.log(FACTORS)) / width)
    assert area_weights([1.0]) @ [0.3] == pytest.approx(0.3)


def test_one_size_alone():
    found = by_hand()
    curve = size_curve(SizePredictions((1.0,), found.index, found.label, found.predicted[1:2]))
    assert (curve.area, curve.at_one, curve.mean_consistency) == (75.0, 75.0, None)


def test_comparison_by_hand():
    first = by_hand()
    better = SizePredictions(first.factors, first.index, first.label, np.tile(first.label, (3, 1)))
    found = compare(first, better)
    assert (found.only_first, found.only_second) == ([0, 0, 0], [3, 1, 2])
    assert found.p == pytest.approx([0.25, 1.0, 0.5])
    assert found.area_difference == pytest.approx(100 - size_curve(first).area)
    assert found.area_interval[0] <= found.area_difference <= found.area_interval[1]
    other = SizePredictions(first.factors, first.index + 1, first.label, first.predicted)
    with pytest.raises(ValueError, match="not evaluated on the same images"):
        compare(first, other)


def test_factors():
    assert len(FACTORS) == 9 and (FACTORS[0], FACTORS[4], FACTORS[-1]) == (0.25, 1.0, 4.0)
    assert np.diff(np.log2(FACTORS)) == pytest.approx([0.5] * 8)  # steps of √2
    assert check_factors([2, 0.5, 2]) == (0.5, 1.0, 2.0)
    for wrong in (0, -1, math.inf, math.nan):
        with pytest.raises(UserError, match="must be positive"):
            check_factors([1, wrong])
