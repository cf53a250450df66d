"""Plots: what is drawn is what was given, and the PNG files are images."""

import sys

import numpy as np
import pytest
from PIL import Image

from timm_wsms.evaluation import plot_confusion, plot_curves, plot_mistakes, plot_sizes, plot_style, plots

ROWS = [
    {"epoch": 1, "train_loss": 2.0, "lr": 0.1},
    {"epoch": 2, "train_loss": 1.5, "test_loss": 1.6, "test_top1": 40.0, "test_top5": None},
    {"epoch": 3, "train_loss": 1.0, "test_loss": 1.2, "test_top1": 60.0, "test_top5": 90.0},
]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    save = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, *rest: (figures.append(figure), save(figure, *rest))[1])
    return figures


def lines(axes):
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}


def test_curves(drawn, tmp_path):
    path = plot_curves(ROWS, tmp_path / "curves.png", "a model")
    loss, accuracy = drawn[0].axes
    assert lines(loss) == {"train loss": [(1, 2.0), (2, 1.5), (3, 1.0)], "test loss": [(2, 1.6), (3, 1.2)]}
    assert lines(accuracy) == {"test top1": [(2, 40.0), (3, 60.0)], "test top5": [(3, 90.0)]}
    assert loss.lines[1].get_color() == accuracy.lines[0].get_color()  # test data, in both panels
    assert "nats" in loss.get_ylabel() and "%" in accuracy.get_ylabel() and loss.get_xlabel() == "epoch"
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 1000


def test_sizes(drawn, tmp_path):
    curves = {"plain": {16: 80.0, 8: 50.0}, "wsms": {8: 60.0, 16: 90.0, 32: 95.0}}
    path = plot_sizes(curves, tmp_path / "sizes.png")
    (axes,) = drawn[0].axes
    assert lines(axes) == {"plain": [(8, 50.0), (16, 80.0)], "wsms": [(8, 60.0), (16, 90.0), (32, 95.0)]}
    assert "pixels" in axes.get_xlabel() and "%" in axes.get_ylabel()
    first, second = axes.lines
    assert first.get_color() != second.get_color() and first.get_marker() != second.get_marker()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["plain", "wsms"]
    with Image.open(path) as image:
        assert image.format == "PNG"


def test_confusion_is_a_matrix(drawn, tmp_path):
    matrix = np.arange(100).reshape(10, 10)
    names = [f"class {number}" for number in range(10)]
    path = plot_confusion(matrix, names, tmp_path / "confusion.png", "a model")
    (axes,) = drawn[0].axes
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(column, row): str(matrix[row, column]) for row in range(10) for column in range(10)}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Predicted class", "True class")
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 1000


def test_mistakes_are_bars(drawn, tmp_path):
    path = plot_mistakes([("eel", "snake", 20, 50), ("cat", "lynx", 9, 39)], tmp_path / "confusion.png")
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["eel → snake", "cat → lynx"]
    assert [bar.get_width() for bar in axes.patches] == [20, 9]
    assert [text.get_text() for text in axes.texts] == ["20 of 50", "9 of 39"]
    assert axes.yaxis_inverted()  # the first on top
    with Image.open(path) as image:
        assert image.format == "PNG"


def test_no_mistakes(tmp_path):
    assert plot_mistakes([], tmp_path / "confusion.png").exists()


def test_epochs_are_whole_numbers(drawn, tmp_path):
    plot_curves(ROWS[:1], tmp_path / "curves.png")
    loss = drawn[0].axes[0]
    first, last = loss.get_xlim()
    assert [tick for tick in loss.get_xticks() if first <= tick <= last] == [1]


def test_before_the_first_epoch(tmp_path):
    assert plot_curves([], tmp_path / "curves.png").exists()


def test_leaves_pyplot_alone(tmp_path):
    plot_sizes({"plain": {8: 50.0}}, tmp_path / "sizes.png")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_curves_of_many_models_can_be_told_apart():
    looks = [plot_style.curve_style(number, 9) for number in range(28)]
    assert len({(look["color"], look["marker"], look["linestyle"]) for look in looks}) == 28
    assert len({look["color"] for look in looks[:7]}) == len({look["marker"] for look in looks[:7]}) == 7
