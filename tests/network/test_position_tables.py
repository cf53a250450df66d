"""Tables of positions for another image size, against interpolation written as matrices and cases made by hand."""

import pytest
import timm
import torch

from timm_wsms import UserError
from timm_wsms.network.position_tables import _guess_grids, find_grids, resample


def interpolation(old, new, antialias):
    """(new, old): weights of a triangle around each new position; wider where there are fewer of them."""
    scale = old / new
    width = max(scale, 1.0) if antialias else 1.0
    where = (torch.arange(new, dtype=torch.float64) + 0.5) * scale - 0.5
    if not antialias:
        where = where.clamp(0, old - 1)
    weights = (1 - (where[:, None] - torch.arange(old)).abs() / width).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def table(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def on_grid(x, side, size):
    """(…, side²) → (…, size²)"""
    weights = interpolation(side, size, True)
    return torch.einsum("ih,jw,...hw->...ij", weights, weights, x.double().unflatten(-1, (side, side))).flatten(-2)


@pytest.mark.parametrize("side, size", [(4, 2), (5, 3), (3, 6), (10, 5), (14, 7), (14, 4)])
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_position_embeddings_hold_class_tokens_first(tokens, side, size):
    old = table(1, tokens + side**2, 3)
    new = resample(old, torch.Size((1, tokens + size**2, 3)))
    assert torch.equal(new[:, :tokens], old[:, :tokens])
    expected = on_grid(old[0, tokens:].T, side, size).T.float()
    torch.testing.assert_close(new[0, tokens:], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [0, 3])
def test_tables_of_relative_positions_hold_class_tokens_last(tokens):
    old = table(13**2 + tokens, 4)  # (2 × 7 - 1)², heads
    new = resample(old, torch.Size((5**2 + tokens, 4)))
    assert new.shape == (25 + tokens, 4) and torch.equal(new[25:], old[169:])
    torch.testing.assert_close(new[:25].T, on_grid(old[:169].T, 13, 5).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("old, new", [((6, 10), (3, 5)), ((10, 6), (5, 3)), ((3, 6), (2, 4))])
def test_positions_of_an_image_that_is_not_square(old, new):
    entries = table(1, 1 + old[0] * old[1], 3)
    found = resample(entries, torch.Size((1, 1 + new[0] * new[1], 3)), aspect=old[0] / old[1])
    assert torch.equal(found[:, 0], entries[:, 0])
    rows, columns = interpolation(old[0], new[0], True), interpolation(old[1], new[1], True)
    expected = torch.einsum("ih,jw,hwc->ijc", rows, columns, entries[0, 1:].double().unflatten(0, old))
    torch.testing.assert_close(found[0, 1:], expected.flatten(0, 1).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [0, 3])
def test_relative_positions_of_an_image_that_is_not_square(tokens):
    entries = table(11 * 19 + tokens, 4)  # 6×10 patches
    found = resample(entries, torch.Size((5 * 9 + tokens, 4)), aspect=0.6)  # 3×5
    assert torch.equal(found[45:], entries[209:])
    rows, columns = interpolation(11, 5, True), interpolation(19, 9, True)
    expected = torch.einsum("ih,jw,hwc->ijc", rows, columns, entries[:209].double().unflatten(0, (11, 19)))
    torch.testing.assert_close(found[:45], expected.flatten(0, 1).float(), rtol=1e-5, atol=1e-5)


def test_a_length_that_is_no_square_is_a_row_of_positions():
    old = table(2, 7)
    expected = old.double() @ interpolation(7, 5, False).T
    torch.testing.assert_close(resample(old, torch.Size((2, 5))), expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("old_side, new_side", [(27, 13), (27, 6), (14, 7), (10, 5), (7, 4)])  # PiT: 27, 13, 6
def test_a_map_of_positions_keeps_its_two_sides(old_side, new_side):
    ramp = torch.linspace(-1, 1, old_side)  # at the centers of the patches
    old = torch.stack((ramp[:, None].expand(old_side, old_side), ramp.expand(old_side, old_side)))[None]
    new = resample(old, torch.Size((1, 2, new_side, new_side)))[0]
    assert new.shape == (2, new_side, new_side)
    torch.testing.assert_close(new[0], new[1].T)
    assert (new[1].std(0) < 1e-6).all()
    steps = new[1, 0].diff()
    assert (steps > 0).all()
    torch.testing.assert_close(new[1, 0], -new[1, 0].flip(0), rtol=1e-5, atol=1e-5)  # nothing is shifted


def test_a_matrix_that_mixes_tokens_is_resized_on_both_axes():
    old = table(16, 16)
    new = resample(old, torch.Size((4, 4)))
    weights = interpolation(4, 2, True)
    grid = torch.kron(weights, weights)  # (4, 16)
    torch.testing.assert_close(new, (grid @ old.double() @ grid.T).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side, size", [(8, 4), (4, 8), (7, 4), (14, 4)])
def test_a_ramp_stays_a_ramp_and_a_constant_the_same(side, size):
    ramp = (torch.arange(side) + 0.5) / side  # where the patches are in the image
    old = torch.stack((ramp.repeat_interleave(side), ramp.repeat(side), torch.full((side**2,), 3.0)), -1)[None]
    new = resample(old, torch.Size((1, size**2, 3)))[0].unflatten(0, (size, size))
    expected = (torch.arange(size) + 0.5) / size
    inside = slice(1, -1)  # at the border the triangle is cut off
    # a sampled triangle is not quite symmetric where the sizes do not divide; half a patch would be 0.04 or more
    tolerance = {"rtol": 0, "atol": 1e-6 if side % size == 0 or size % side == 0 else 0.02}
    torch.testing.assert_close(new[inside, 0, 0], expected[inside], **tolerance)
    torch.testing.assert_close(new[0, inside, 1], expected[inside], **tolerance)
    torch.testing.assert_close(new[..., 2], torch.full((size, size), 3.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_and_memory(dtype):
    old = torch.nn.Parameter(table(1, 17, 3).to(dtype))
    new = resample(old, torch.Size((1, 5, 3)))
    assert new.dtype == dtype and new.is_contiguous() and not new.requires_grad
    same = resample(old, old.shape)
    assert torch.equal(same, old)


def test_a_grid_that_timm_states_is_not_guessed():
    """2×8 and 4×4 have as many entries: without the module's word the table would be resized as 4×4."""
    old = table(1, 1 + 16, 3)
    found = resample(old, torch.Size((1, 1 + 4, 3)), grids=((2, 8), (1, 4)))
    expected = on_grid_of(old[:, 1:], (2, 8), (1, 4))
    torch.testing.assert_close(found, torch.cat((old[:, :1], expected), 1))
    assert not torch.allclose(found, resample(old, torch.Size((1, 1 + 4, 3))))


def on_grid_of(entries, old, new):
    rows, columns = (interpolation(before, after, antialias=True) for before, after in zip(old, new, strict=True))
    grid = entries.double().unflatten(1, old)  # (1, h, w, C)
    return torch.einsum("oh,bhwc,pw->bopc", rows, grid, columns).flatten(1, 2).float()


@pytest.mark.parametrize(
    "name, parameter, grids",
    [
        ("test_vit", "pos_embed", ((10, 10), (5, 5))),
        ("swin_tiny_patch4_window7_224", "layers.0.blocks.0.attn.relative_position_bias_table", ((13, 13), (7, 7))),
    ],
)
def test_which_grids_timm_states(name, parameter, grids):
    arguments = {"window_size": 4} if "swin" in name else {}
    with torch.device("meta"):
        old = timm.create_model(name)
        new = timm.create_model(name, img_size=old.default_cfg["input_size"][-1] // 2, **arguments)
    path, _, leaf = parameter.rpartition(".")
    holders = [(backbone, backbone.get_submodule(path)) for backbone in (old, new)]
    assert find_grids(leaf, *holders) == grids
    for holder, grid in zip(holders, grids, strict=True):
        tokens = 1 if leaf == "pos_embed" else 0
        assert holder[1].get_parameter(leaf).shape[leaf == "pos_embed"] == tokens + grid[0] * grid[1]


def test_two_grids_that_fit_are_an_error():
    with pytest.raises(UserError, match="may list a grid of"):
        _guess_grids(16, 4, (0, 0), 1.0)
