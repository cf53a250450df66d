"""Augmentation of whole batches against loops over single images."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from timm_wsms.data import DataSettings
from timm_wsms.data.batch_augmentation import BatchAugmentation, draw_pad_crop_flip, draw_sizes, pad_crop_flip
from timm_wsms.errors import UserError
from timm_wsms.object_scaling import rescale_object


def test_pad_crop_flip_against_a_loop():
    images = torch.randn(40, 3, 12, 10)
    corners, flips = draw_pad_crop_flip(40, np.random.default_rng(1))
    result = pad_crop_flip(images, torch.from_numpy(corners), torch.from_numpy(flips))
    for image, (top, left), flip, augmented in zip(images.numpy(), corners, flips, result.numpy(), strict=True):
        padded = np.zeros((3, 20, 18), np.float32)
        padded[:, 4:16, 4:14] = image
        crop = padded[:, top : top + 12, left : left + 10]
        np.testing.assert_array_equal(augmented, crop[:, :, ::-1] if flip else crop)


def test_draws_reach_every_corner_and_flip_half():
    corners, flips = draw_pad_crop_flip(9000, np.random.default_rng(2))
    counts = np.zeros((9, 9))
    np.add.at(counts, (corners[:, 0], corners[:, 1]), 1)
    assert counts.min() > 60 and counts.max() < 170  # 111 expected, with a standard deviation of 10
    assert 0.47 < flips.mean() < 0.53


def test_sizes_are_uniform_in_their_logarithm():
    sizes = draw_sizes(4000, (0.5, 2.0), np.random.default_rng(0))
    assert kstest(np.log2(sizes), "uniform", (-1, 2)).pvalue > 0.05
    assert draw_sizes(3, (0.7, 0.7), np.random.default_rng(0)).tolist() == pytest.approx([0.7] * 3)


def test_jitter_resizes_each_image_by_its_own_size_and_cuts_then():
    augment = BatchAugmentation(DataSettings(augmentation="pad_crop_flip", scale_jitter=(0.5, 2.0)))
    images, drawn = torch.randn(12, 3, 12, 10), augment.draw(12, np.random.default_rng(4))
    result = augment(images, drawn)
    plain = BatchAugmentation(DataSettings(augmentation="pad_crop_flip"))
    for number, size in enumerate(drawn["sizes"].tolist()):
        own = {"corners": drawn["corners"][[number]], "flips": drawn["flips"][[number]]}
        expected = plain(rescale_object(images[[number]], size), own)[0]
        torch.testing.assert_close(result[number], expected, rtol=0, atol=1e-5)
    assert (drawn["sizes"] < 0.8).any() and (drawn["sizes"] > 1.25).any()


def test_jitter_leaves_what_else_is_drawn_as_it_is():
    without, with_jitter = (
        BatchAugmentation(DataSettings(augmentation="pad_crop_flip", scale_jitter=jitter)).draw(
            20, np.random.default_rng(5)
        )
        for jitter in (None, (0.5, 2.0))
    )
    assert torch.equal(without["corners"], with_jitter["corners"]) and torch.equal(
        without["flips"], with_jitter["flips"]
    )
    assert "sizes" not in without


def test_nothing_to_do():
    assert not BatchAugmentation(DataSettings()) and not BatchAugmentation(DataSettings(augmentation="timm"))
    assert BatchAugmentation(DataSettings(scale_jitter=(1.0, 2.0)))


@pytest.mark.parametrize("sizes", [(2.0, 0.5), (0.0, 1.0), (-1.0, 1.0), (1.0, math.inf), (math.nan, 1.0)])
def test_sizes_that_are_none(sizes):
    with pytest.raises(UserError, match=r"data\.scale_jitter .*\[0\.5, 2\]"):
        BatchAugmentation(DataSettings(scale_jitter=sizes))
