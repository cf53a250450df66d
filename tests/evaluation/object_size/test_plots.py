"""Pictures of what object size does: what is drawn is what was given."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import timm_wsms  # noqa: F401  registers the names
from timm_wsms.data import Split
from timm_wsms.errors import UserError
from timm_wsms.evaluation import stage_heat_maps
from timm_wsms.evaluation.object_size import gallery
from timm_wsms.evaluation.object_size import plots as size_plots
from timm_wsms.evaluation.object_size.curve import SizePredictions, size_curve
from timm_wsms.evaluation.stages import cam_plots
from timm_wsms.evaluation.stages.ablation import StageDrops

FACTORS = (0.5, 1.0, 2.0)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    for module in (size_plots, gallery, cam_plots):
        save = module.save_figure
        monkeypatch.setattr(
            module, "save_figure", lambda figure, *rest, save=save: (figures.append(figure), save(figure, *rest))[1]
        )
    return figures


def predictions(n=40, right=0.5, seed=0):
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 4
    return SizePredictions(FACTORS, np.arange(n), label, np.where(rng.random((3, n)) < right, label, (label + 1) % 4))


def split(n=40):
    pixels = np.random.default_rng(1).integers(0, 255, (n, 8, 8, 3), "uint8")
    return Split("test", np.arange(n) % 4, ["a", "b", "c", "d"], pixels=pixels)


def test_curves(drawn, tmp_path):
    curves = {"plain": size_curve(predictions()), "wsms": size_curve(predictions(seed=1))}
    path = size_plots.plot_size_curves(curves, {"plain": (1.0, 2.0), "wsms": None}, tmp_path / "x.png", "title")
    (axes,) = drawn[0].axes
    by_label = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    for name, curve in curves.items():
        assert list(zip(*by_label[name].get_data(), strict=True)) == list(zip(FACTORS, curve.top1, strict=True))
        assert by_label[name].get_markerfacecolor() == "white"
    filled = [line for line in axes.lines if line.get_linestyle() == "None" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in filled] == [[1.0, 2.0]]  # those that plain has seen
    band = axes.collections[0].get_paths()[0].get_extents()
    ends = np.array(curves["plain"].interval)
    assert (band.y0, band.y1) == pytest.approx((ends.min(), ends.max()))
    assert axes.get_xscale() == "log" and "%" in axes.get_ylabel() and "size" in axes.get_xlabel()
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 900


def test_drops(drawn, tmp_path):
    drops = StageDrops(FACTORS, [50.0] * 3, [[20.0, 30.0, 5.0], [1.0, -2.0, 9.0]], [[(0.0, 40.0)] * 3] * 2)
    size_plots.plot_stage_drops({"one": drops, "two": drops}, tmp_path / "x.png")
    assert [axes.get_title() for axes in drawn[0].axes] == ["one", "two"]
    first, second, zero = drawn[0].axes[0].lines
    assert list(first.get_ydata()) == [20.0, 30.0, 5.0] and list(second.get_ydata()) == [1.0, -2.0, 9.0]
    assert list(zero.get_ydata()) == [0, 0] and first.get_color() != second.get_color()


def test_gallery_shows_what_the_last_alone_gets():
    found = [predictions(seed=seed) for seed in range(3)]
    gained, drawn = gallery.choose(found, seed=0, count=5)
    right = np.array([one.correct[1] for one in found])  # at size 1
    expected = {place for place in range(40) if not right[0, place] and not right[1, place] and right[2, place]}
    assert set(gained) <= expected and len(gained) == min(5, len(expected)) > 0
    assert len(set(drawn)) == 5 and not set(drawn) <= expected
    assert not np.array_equal(gallery.choose(found, seed=1, count=5)[1], drawn)
    np.testing.assert_array_equal(gallery.choose(found, seed=0, count=5)[1], drawn)
    with pytest.raises(UserError, match="compares models"):
        gallery.choose(found[:1])


def test_gallery_picture(drawn, tmp_path):
    found = {"plain": predictions(), "wsms": predictions(seed=1)}
    path = gallery.plot_gallery(found, split(), tmp_path / "x.png", count=5)
    halves = gallery.choose([*found.values()], count=5)
    shown = [axes for axes in drawn[0].findobj(type(drawn[0].axes[0])) if axes.images]
    assert len(shown) == len(halves[0]) + len(halves[1])
    for axes, place in zip(shown, np.concatenate(halves), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), split().pixels[place])
        assert axes.get_title() == "abcd"[place % 4]
        filled = [line.get_markerfacecolor() != "white" for line in axes.lines]
        assert filled == [hit for one in found.values() for hit in one.correct[:, place]]
    with Image.open(path) as image:
        assert image.format == "PNG"


def test_gallery_without_any_gain(tmp_path):
    same = predictions()
    assert gallery.plot_gallery({"plain": same, "wsms": same}, split(), tmp_path / "x.png").is_file()


def test_heat_maps(drawn, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("wsms_resnet20_cifar", num_classes=4)
    images = torch.randn(2, 3, 32, 32)
    config = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    cam_plots.plot_heat_maps(model, images, ["b", "c"], list("abcd"), config, tmp_path / "x.png")
    block = drawn[0].subfigs[0]
    grid = np.array(block.axes).reshape(3, 4)  # a line a size; the image and three stages
    heat = stage_heat_maps(model, images)
    with torch.no_grad():
        predicted = "abcd"[int(model.eval()(images)[0].argmax())]
    assert grid[1, 0].get_title() == predicted
    pixels = images[0] * torch.tensor(config["std"])[:, None, None] + torch.tensor(config["mean"])[:, None, None]
    np.testing.assert_allclose(grid[1, 0].images[0].get_array(), pixels.clamp(0, 1).permute(1, 2, 0), atol=1e-6)
    for stage in range(3):
        own = grid[1, 1 + stage].images[1]
        np.testing.assert_allclose(own.get_array(), heat[0, stage], atol=1e-6)
        assert own.get_clim() == pytest.approx((-heat[0].abs().max().item(), heat[0].abs().max().item()))
        assert grid[1, 1 + stage].get_title() == f"stage {stage + 1}: {heat[0, stage].sum().item():+.1f}"
