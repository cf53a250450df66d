"""Smaller and larger objects: against Pillow, by their centers, and border by border."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from timm_wsms.errors import UserError
from timm_wsms.object_scaling import rescale_object

FACTORS = [2 ** (step / 2) for step in range(-4, 5)]
BORDERS = ["mean", "edge", "reflect", "blur"]


def noise(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def pillow(image, size, box=None):
    """(H, W) → (size, size) by Pillow's bicubic filter in float32, clipped to the image's range as 8-bit pixels are."""
    resized = np.asarray(Image.fromarray(image.numpy()).resize((size, size), Image.Resampling.BICUBIC, box))
    return torch.tensor(resized).clip(image.min(), image.max())


@pytest.mark.parametrize("border", ["mean", "blur"])
@pytest.mark.parametrize("size", [8, 16, 22, 30])  # pixels that center on 32 without a fraction
def test_smaller_is_pillows(size, border):
    image = noise(32, 32)
    start = (32 - size) // 2
    got = rescale_object(image[None, None], size / 32, border)[0, 0]
    torch.testing.assert_close(got[start : start + size, start : start + size], pillow(image, size), rtol=0, atol=1e-6)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("factor", [1.5, 2.0, 4.0])
def test_larger_is_pillows(factor, border):
    image, half = noise(32, 32), 16 / factor
    got = rescale_object(image[None, None], factor, border)[0, 0]
    box = (16 - half, 16 - half, 16 + half, 16 + half)
    torch.testing.assert_close(got, pillow(image, 32, box), rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 33), (24, 31)])
def test_centered_dot_stays_centered(height, width, border, factor):
    image = torch.zeros(1, 1, height, width)
    image[..., (height - 1) // 2 : height // 2 + 1, (width - 1) // 2 : width // 2 + 1] = 1  # one or two pixels a side
    weight = rescale_object(image, factor, border)[0, 0].double()
    rows, columns = torch.arange(height).double(), torch.arange(width).double()
    center = (weight.sum(1) @ rows / weight.sum(), weight.sum(0) @ columns / weight.sum())
    assert center == (pytest.approx((height - 1) / 2, abs=1e-5), pytest.approx((width - 1) / 2, abs=1e-5))


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("border", BORDERS)
def test_mirrored_image_gives_the_mirrored_result(border, factor):
    image = noise(2, 3, 17, 20)
    got = rescale_object(image, factor, border)
    torch.testing.assert_close(rescale_object(image.flip(-1), factor, border), got.flip(-1))
    torch.testing.assert_close(rescale_object(image.flip(-2), factor, border), got.flip(-2))


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("border", ["mean", "blur"])
def test_object_has_its_size(border, factor):
    image = torch.zeros(1, 1, 64, 64)
    image[..., 24:40, 26:38] = 1  # 16×12 pixels, white on black
    got = rescale_object(image, factor, border)[0, 0]
    assert (got[32] > 0.5).sum().item() == pytest.approx(12 * factor, abs=1)
    assert (got[:, 32] > 0.5).sum().item() == pytest.approx(16 * factor, abs=1)


def test_factor_one_changes_no_bit():
    image = noise(2, 3, 9, 10)
    for border in BORDERS:
        assert rescale_object(image, 1.0, border).equal(image)


def test_edge_border_is_the_mean_of_the_outermost_pixels():
    image = noise(2, 3, 8, 10)
    got = rescale_object(image, 0.25, "edge")
    for number in range(2):
        for channel in range(3):
            rows = image[number, channel].tolist()
            outermost = [v for r, row in enumerate(rows) for c, v in enumerate(row) if r in (0, 7) or c in (0, 9)]
            assert len(outermost) == 32
            assert got[number, channel, 0].tolist() == pytest.approx([sum(outermost) / 32] * 10)


def test_mean_border_is_each_images_own_mean_color():
    image = noise(2, 3, 32, 32) * torch.tensor([1.0, 5.0])[:, None, None, None]
    got = rescale_object(image, 0.5)
    for number in range(2):
        expected = image[number].mean((1, 2))[:, None]
        torch.testing.assert_close(got[number, :, :8].flatten(1), expected.expand(3, 8 * 32))


def test_pixel_that_is_covered_in_part_is_a_mixture():
    image = torch.ones(1, 1, 30, 30)
    image[..., 10:20, 10:20] = 0  # black in the middle, white at the edges, so 8/9 on average
    got = rescale_object(image, 0.7)[0, 0]  # 21 pixels: 4.5 are uncovered at each edge
    mean = 8 / 9
    torch.testing.assert_close(got[15, 3:6], torch.tensor([mean, (mean + 1) / 2, 1.0]), rtol=0, atol=1e-3)


def test_reflected_border_continues_the_image():
    image = noise(1, 1, 16, 16)
    got = rescale_object(image, 0.5, "reflect")[0, 0]
    tiled = np.pad(image[0, 0].numpy(), 16, mode="symmetric")  # three images a side, mirrored
    expected = pillow(torch.from_numpy(tiled), 24)[4:20, 4:20]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(got[4:12, 3], got[4:12, 4], rtol=0, atol=1e-6)


def test_blurred_border_is_scipys_gaussian():
    from scipy.ndimage import gaussian_filter

    image = noise(1, 1, 32, 32)
    got = rescale_object(image, 0.5, "blur")[0, 0].numpy()
    expected = gaussian_filter(image[0, 0].numpy().astype(float), sigma=4, mode="reflect", truncate=8)
    np.testing.assert_allclose(got[:8], expected[:8], atol=1e-6)


@pytest.mark.parametrize("border", BORDERS)
def test_stays_within_the_range_and_follows_its_units(border):
    image = (noise(2, 3, 16, 16) > 0.5).float()
    for factor in FACTORS:
        got = rescale_object(image, factor, border)
        assert got.shape == image.shape and got.min() >= -1e-6 and got.max() <= 1 + 1e-6
        torch.testing.assert_close(rescale_object(7 * image - 3, factor, border), 7 * got - 3, rtol=1e-5, atol=1e-5)


def test_batch_is_its_images():
    image = noise(3, 3, 12, 15)
    got = rescale_object(image, 0.4, "reflect")
    torch.testing.assert_close(got, torch.cat([rescale_object(one[None], 0.4, "reflect") for one in image]))


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_impossible_factor(factor):
    with pytest.raises(UserError, match="must be positive"):
        rescale_object(torch.zeros(1, 1, 4, 4), factor)


def test_unknown_border():
    with pytest.raises(UserError, match="mean, edge, reflect, blur; not 'black'"):
        rescale_object(torch.zeros(1, 1, 4, 4), 0.5, "black")


@pytest.mark.parametrize("border", BORDERS)
def test_a_factor_for_each_image(border):
    images, factors = noise(5, 3, 17, 20), torch.tensor([0.3, 1.0, 2.5, 0.8, 1.3])
    together = rescale_object(images, factors, border)
    for image, factor, got in zip(images, factors.tolist(), together, strict=True):
        torch.testing.assert_close(got, rescale_object(image[None], factor, border)[0], rtol=0, atol=1e-6)
    assert torch.equal(together[1], images[1])


def test_one_bad_factor_among_several():
    with pytest.raises(UserError, match="must be positive"):
        rescale_object(noise(2, 3, 8, 8), torch.tensor([0.5, 0.0]))
