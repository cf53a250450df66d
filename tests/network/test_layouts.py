"""The layouts of features, each entry looked up by hand; and where the maps of padded images end up."""

import pytest
import timm
import torch

import timm_wsms  # noqa: F401  registers the names
from timm_wsms import UserError
from timm_wsms.network.layouts import fit, merge, pad_to_multiple, to_map

GENERATOR = torch.Generator().manual_seed(0)


def values(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def image(height, width):
    return torch.empty(2, 3, height, width)


def as_map(tokens, prefix, height, width):
    """(B, P + h·w, C) → (B, C, h, w), entry by entry."""
    found = torch.empty(tokens.shape[0], tokens.shape[2], height, width)
    for row in range(height):
        for column in range(width):
            found[:, :, row, column] = tokens[:, prefix + row * width + column]
    return found


@pytest.mark.parametrize(
    "height, width, grid",
    [
        (64, 64, (4, 4)),
        (32, 96, (2, 6)),
        (40, 72, (3, 5)),  # padded by the backbone
        (40, 72, (2, 4)),  # cut by the backbone
        (64, 96, (2, 3)),  # merged by the backbone, 2×2 patches into one
    ],
)
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_tokens_become_a_map(prefix, height, width, grid):
    tokens = values(2, prefix + grid[0] * grid[1], 7)
    found = to_map(tokens, image(height, width), 16, "NCHW")
    assert torch.equal(found, as_map(tokens, prefix, *grid))


def test_tokens_that_are_no_grid():
    with pytest.raises(UserError, match="1 tokens are not a grid of patches of an image of 256×256 pixels"):
        to_map(values(2, 1, 7), image(256, 256), 16, "NCHW")


def test_maps_become_a_map():
    x = values(2, 3, 4, 5)
    assert to_map(x, image(64, 80), 16, "NCHW") is x
    assert to_map((values(2, 9, 3), x), image(64, 80), 16, "NCHW") is x  # of several features the last
    found = to_map(x, image(48, 64), 16, "NHWC")
    assert found.shape == (2, 5, 3, 4)
    for channel in range(5):
        assert torch.equal(found[:, channel], x[..., channel])
    positions = values(2, 7, 12)  # channels first
    found = to_map(positions, image(48, 64), 16, "NCL")
    assert torch.equal(found, as_map(positions.transpose(1, 2), 0, 3, 4))


def replaced(like, x, layout):
    return merge(like, x, layout, residual=False)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_a_map_becomes_tokens(prefix):
    x, like = values(2, 7, 3, 4), values(2, prefix + 12, 7)
    found = replaced(like, x, "NCHW")
    assert found.shape == like.shape
    assert torch.equal(as_map(found, prefix, 3, 4), x)
    mean = sum(x[:, :, row, column] for row in range(3) for column in range(4)) / 12
    for token in range(prefix):
        torch.testing.assert_close(found[:, token], mean)
    torch.testing.assert_close(merge(like, x, "NCHW", residual=True), like + found, rtol=0, atol=0)
    assert torch.equal(to_map(found, image(48, 64), 16, "NCHW"), x)  # and back


@pytest.mark.parametrize("tokens", [1, 2])
def test_class_tokens_alone_get_the_mean(tokens):  # PiT, with and without distillation
    x, like = values(2, 7, 3, 4), values(2, tokens, 7)
    found = merge(like, x, "NCHW", residual=True)
    assert found.shape == like.shape
    for token in range(tokens):
        torch.testing.assert_close(found[:, token], like[:, token] + x.flatten(2).sum(-1) / 12)


def test_a_map_stays_one():
    x = values(2, 7, 3, 4)
    assert torch.equal(replaced(values(2, 7, 3, 4), x, "NCHW"), x)
    like = values(2, 3, 4, 7)
    found = replaced(like, x, "NHWC")
    assert found.shape == (2, 3, 4, 7)
    for channel in range(7):
        assert torch.equal(found[..., channel], x[:, channel])
    torch.testing.assert_close(merge(like, x, "NHWC", residual=True), like + found, rtol=0, atol=0)


@pytest.mark.parametrize("residual", [True, False])
def test_channels_first(residual):
    x, like = values(2, 7, 3, 4), values(2, 7, 12)
    found = merge(like, x, "NCL", residual)
    for row in range(3):
        for column in range(4):
            expected = x[:, :, row, column] + residual * like[:, :, 4 * row + column]
            torch.testing.assert_close(found[:, :, 4 * row + column], expected, rtol=0, atol=0)


@pytest.mark.parametrize("height, width", [(40, 56), (48, 40), (1, 17), (32, 48)])
def test_padding_at_the_right_and_the_bottom(height, width):
    x = values(2, 3, height, width)
    found = pad_to_multiple(x, 16)
    assert found.shape[2] % 16 == 0 <= found.shape[2] - height < 16
    assert found.shape[3] % 16 == 0 <= found.shape[3] - width < 16
    assert torch.equal(found[..., :height, :width], x)
    assert not found[..., height:, :].any() and not found[..., width:].any()
    assert (found is x) == (height % 16 == width % 16 == 0)
    assert pad_to_multiple(x, 1) is x
    least = pad_to_multiple(x, 16, 72)  # 80 is the next multiple
    assert least.shape[2:] == (max(80, found.shape[2]), max(80, found.shape[3]))
    assert torch.equal(least[..., :height, :width], x)


def padded_like(height, width):
    return pad_to_multiple(torch.zeros(1, 3, height, width), 16)


@pytest.mark.parametrize("height, width", [(40, 56), (40, 48), (64, 40), (80, 32)])  # 48×64, 48×48, 64×48: padded
def test_a_ramp_ends_where_it_was_in_the_image(height, width):
    """Patches of 16 pixels a side in the stage's image and of 4 in stage 1's grid: each knows where its center is."""
    padded = padded_like(height, width)
    rows, columns = (torch.arange(0.0, side, 16) + 8 for side in padded.shape[2:])
    x = torch.stack((rows[:, None].expand(-1, len(columns)), columns.expand(len(rows), -1)))[None]  # (1, 2, h, w)
    found = fit(x, torch.empty(1, 9, height // 4, width // 4), padded, torch.empty(1, 3, height, width))
    assert found.shape == (1, 2, height // 4, width // 4)
    expected = [torch.arange(0.0, side, 4) + 2 for side in (height, width)]
    torch.testing.assert_close(found[0, 0, :, 0], expected[0].clamp(rows[0], rows[-1]))
    torch.testing.assert_close(found[0, 1, 0], expected[1].clamp(columns[0], columns[-1]))
    assert (found[0, 0] == found[0, 0, :, :1]).all() and (found[0, 1] == found[0, 1, :1]).all()


def test_a_dot_keeps_its_center_and_does_not_follow_the_padding():
    x = torch.zeros(1, 1, 3, 4)
    x[0, 0, 1, 2] = 1  # pixels 16 to 31, 32 to 47
    found = fit(x, torch.empty(1, 9, 10, 14), padded_like(40, 56), torch.empty(1, 3, 40, 56))[0, 0]
    positions = torch.arange(14.0) * 4 + 2  # in pixels
    row = (found.sum(1) * positions[:10]).sum() / found.sum()
    column = (found.sum(0) * positions).sum() / found.sum()
    assert (row.item(), column.item()) == (pytest.approx(24), pytest.approx(40))


def test_a_map_of_the_right_size_is_left_as_it_is():
    x, like = values(1, 3, 4, 5), torch.empty(1, 9, 4, 5)
    assert fit(x, like, image(64, 80), image(64, 80)) is x
    x = values(1, 3, 4, 4)  # of 64 pixels, of which 48 are the image: cut only, no value is interpolated
    assert torch.equal(fit(x, torch.empty(1, 9, 3, 3), image(64, 64), image(48, 48)), x[..., :3, :3])


@pytest.mark.parametrize("name", ["efficientvim_m1", "coat_tiny"])
def test_of_several_features_the_last_is_integrated(name):
    """`x_last + integrated`, laid out like it: EfficientViM (B, C, h·w), CoaT (B, 1 + h·w, C)."""
    torch.manual_seed(0)
    model = timm.create_model(f"wsms_{name}").eval()
    integrated = []
    model.integration.register_forward_hook(lambda module, args, output: integrated.append(output))
    images = torch.randn(1, *model.default_cfg["input_size"])
    with torch.no_grad():
        found, plain = model.forward_features(images), model.backbone.forward_features(images)
    patches = integrated[0].flatten(2)
    if name.startswith("coat"):
        patches = patches.transpose(1, 2)
        patches = torch.cat((patches.mean(1, keepdim=True), patches), 1)
    assert len(found) == len(plain) > 1 and all(map(torch.equal, found[:-1], plain[:-1]))
    assert patches.abs().max() > 0
    torch.testing.assert_close(found[-1], plain[-1] + patches, rtol=0, atol=1e-6)
