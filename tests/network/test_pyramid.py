"""The images of a pyramid, against sums over pixels written out; and which factors make one."""

import pytest
import torch

from tests.helpers.networks import images
from tests.helpers.resampling import mean_of_blocks, triangles
from timm_wsms import UserError
from timm_wsms.network.pyramid import choose_factors, make_pyramid

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


def image(height=12, width=9):
    return images((height, width), dtype=torch.float64)


def test_halvings_are_means_of_blocks():
    x = image()
    found = make_pyramid(x, [1.0, 0.25, 0.5])
    assert found[0] is x
    torch.testing.assert_close(found[1], mean_of_blocks(x, 4), **TOLERANCE)
    torch.testing.assert_close(found[2], mean_of_blocks(x, 2), **TOLERANCE)


@pytest.mark.parametrize(
    "factor, size", [(2, (24, 18)), (1.5, (18, 13)), (0.7, (8, 6)), (1 / 3, (4, 3)), (0.3, (3, 2))]
)
def test_other_factors_by_bilinear_interpolation_with_antialiasing(factor, size):
    x = image()
    _, found = make_pyramid(x, [1.0, factor])
    assert found.shape[-2:] == size
    expected = triangles(12, size[0]) @ x @ triangles(9, size[1]).T
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_a_centered_dot_stays_in_the_center():
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    x[..., 3:5, 3:5] = 1
    for found in make_pyramid(x, [1.0, 2.0, 1.25, 0.75, 0.5]):
        torch.testing.assert_close(found, found.flip(2, 3), **TOLERANCE)
        middle = found.shape[-1] // 2
        assert found[..., middle, middle] == found.max() > 0.24


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [2.0, 0.7])
def test_other_types(dtype, factor):
    expected = make_pyramid(image(), [1.0, factor])[1]
    found = make_pyramid(image().to(dtype), [1.0, factor])[1]
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() < 10 * torch.finfo(dtype).eps


def test_factors():
    assert choose_factors(None, None) == [1, 0.5, 0.25]
    assert choose_factors(None, 2) == [1, 0.5]
    assert choose_factors([2, 1, 0.5], None) == [1, 2, 0.5]  # stage 1 sees the image as it is
    assert choose_factors((0.7, 1.0), 2) == [1, 0.7]
    assert choose_factors([1], None) == [1]


@pytest.mark.parametrize(
    "pyramid, stages, words",
    [
        ([2, 0.5], None, "pyramid must hold 1 once, the image that stage 1 sees; not [2, 0.5]"),
        ([1, 1.0, 0.5], None, "pyramid must hold 1 once"),
        ([], None, "pyramid must hold 1 once"),
        ([1, 0], None, "pyramid must be positive numbers"),
        ([1, -0.5], None, "pyramid must be positive numbers"),
        ([1, float("inf")], None, "pyramid must be positive numbers"),
        ([1, "2"], None, "pyramid must be positive numbers"),
        ([True, 0.5], None, "pyramid must be positive numbers"),
        ([1, 0.5], 3, "a pyramid of 2 factors makes as many stages, not 3; leave out stages"),
        (None, 0, "stages must be positive, not 0"),
    ],
)
def test_factors_that_make_no_pyramid(pyramid, stages, words):
    with pytest.raises(UserError) as caught:
        choose_factors(pyramid, stages)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("factors, least", [([1.0, 0.5, 0.25], 4), ([1.0, 0.3], 4), ([2.0, 1.0], 1)])
def test_an_image_must_leave_a_pixel_at_every_factor(factors, least):
    assert all(x.numel() for x in make_pyramid(image(least, 5), factors))
    if least > 1:
        with pytest.raises(UserError, match=f"too small for {len(factors)} stages: give at least {least}×{least}"):
            make_pyramid(image(least - 1, 5), factors)
