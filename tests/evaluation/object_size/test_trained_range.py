"""Sizes seen in training: against sizes that timm's own transform draws."""

import random

import numpy as np
import pytest
import timm.data
import yaml
from PIL import Image

from tests.helpers.paths import ROOT
from tests.helpers.preprocessing import preprocessing
from timm_wsms.data import DataSettings, TimmAugmentation, eval_transform, train_transform
from timm_wsms.evaluation.object_size.trained_range import trained_sizes, was_trained


def folder(tmp_path, **data):
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({"model": "x", "data": data}))
    return tmp_path


def drawn_sizes(crop_pct, n=400, **augmentation):
    """Widths of a bar in training images, relative to its width at evaluation."""
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[:, 118:138] = 255
    image, common = Image.fromarray(pixels), {"input_size": (3, 128, 128), "crop_pct": crop_pct, "normalize": False}
    evaluated = timm.data.create_transform(**common)(image)
    train = timm.data.create_transform(
        **common, is_training=True, color_jitter=None, hflip=0, ratio=(1, 1), interpolation="bilinear", **augmentation
    )
    widths = [(train(image)[0, 64, 32:96].float() / 255).sum().item() for _ in range(n)]
    return np.array(widths) / (evaluated[0, 64, 32:96].float() / 255).sum().item()


def test_random_resized_crop(tmp_path):
    least, most = trained_sizes(folder(tmp_path, augmentation="timm", timm={"scale": [0.5, 1.0]}), 0.875, 32)
    assert (least, most) == pytest.approx((0.875, 0.875 * 2**0.5))
    sizes = drawn_sizes(0.875, scale=(0.5, 1.0))
    whole = sizes[sizes > 0.8 * least]  # a crop may cut the bar
    assert whole.min() == pytest.approx(least, rel=0.05) and whole.max() == pytest.approx(most, rel=0.05)


def test_jitter_that_keeps_the_ratio(tmp_path):
    data = {"augmentation": "timm", "timm": {"train_crop_mode": "rkrc", "scale": [0.25, 4.0]}}
    least, most = trained_sizes(folder(tmp_path, **data), 1.0, 32)
    assert (least, most) == pytest.approx((0.5, 2.0))
    sizes = drawn_sizes(1.0, train_crop_mode="rkrc", scale=(0.25, 4.0))
    assert sizes.min() == pytest.approx(least, rel=0.05) and 1.7 < sizes.max() <= most * 1.05


def test_scale_jitter(tmp_path):
    jittered = folder(tmp_path, augmentation="pad_crop_flip", scale_jitter=[0.5, 2])
    assert trained_sizes(jittered, 1.0, 32) == (0.5, 2.0)
    assert trained_sizes(folder(tmp_path, augmentation="none", scale_jitter=None), 1.0, 32) == (1.0, 1.0)


def test_defaults_are_timms(tmp_path):
    empty = folder(tmp_path, augmentation="timm", timm={"train_crop_mode": None, "scale": None})
    assert trained_sizes(empty, 1.0, 32) == pytest.approx((1.0, 0.08**-0.5))
    narrow = folder(tmp_path, augmentation="timm", timm={"train_crop_mode": "rkrr", "scale": None})
    assert trained_sizes(narrow, 0.9, 32) == pytest.approx((0.9, 0.9 * 0.8**-0.5))
    enlarged = folder(tmp_path, augmentation="timm", timm={"train_crop_mode": "rkrr", "scale": [0.2, 0.5]})
    assert trained_sizes(enlarged, 0.9, 32)[0] == 0.9  # half of the images are not resized


@pytest.mark.parametrize("name", ["resnet20_cifar10", "wsms_resnet20_cifar10"])
def test_the_repositorys_models_were_trained_at_one_size(name):
    assert trained_sizes(ROOT / "hub" / "models" / name, 1.0, 32) == (1.0, 1.0)


def test_unknown(tmp_path):
    assert trained_sizes(tmp_path, 1.0, 32) is None
    assert trained_sizes(folder(tmp_path, augmentation="to come"), 1.0, 32) is None
    for text in ("[", "3", "data: 3", "data: {augmentation: timm, timm: {scale: [1, x]}}"):
        (tmp_path / "settings.yaml").write_text(text)
        assert trained_sizes(tmp_path, 1.0, 32) is None


def test_marks():
    assert [was_trained(factor, (0.7, 1.4)) for factor in (0.5, 0.5**0.5, 1.0, 2**0.5, 2.0)] == [0, 1, 1, 1, 0]
    assert not was_trained(1.0, None)


@pytest.mark.parametrize("jitter", [0.5, 1.0, 2.0])
def test_scale_jitter_times_the_scale_of_the_crop(tmp_path, jitter):
    data = {"augmentation": "timm", "timm": {"scale": [0.5, 1.0]}}
    least, most = trained_sizes(folder(tmp_path, **data, scale_jitter=[jitter, jitter]), 0.875, 32)
    assert (least, most) == pytest.approx((jitter * 0.875, jitter * 0.875 * 2**0.5))
    assert trained_sizes(folder(tmp_path, **data, scale_jitter=[0.5, jitter * 2]), 0.875, 32) == pytest.approx(
        (0.4375, most * 2)
    )
    sizes = drawn_jittered(0.875, jitter, (0.5, 1.0))
    whole = sizes[sizes > 0.8 * least]  # a crop may cut the bar
    assert whole.min() == pytest.approx(least, rel=0.06) and whole.max() == pytest.approx(most, rel=0.06)


def drawn_jittered(crop_pct: float, jitter: float, scale: tuple[float, float]) -> np.ndarray:
    """Widths of a bar in images of the training's transform, relative to its width at evaluation."""
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[8:248, 118:138] = 255  # away from the edges, so that the border is black
    config = preprocessing(128, mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=crop_pct)
    augmentation = TimmAugmentation(scale=scale, ratio=(1, 1), hflip=0, color_jitter=None)
    settings = DataSettings(
        augmentation="timm", timm=augmentation, scale_jitter=(jitter, jitter), scale_border="edge", decoding="full"
    )
    random.seed(0)
    image, transform = Image.fromarray(pixels), train_transform(config, settings)
    widths = [transform(image)[0, 64].sum().item() for _ in range(300)]
    return np.array(widths) / eval_transform(config)(image)[0, 64].sum().item()


def test_training_at_other_image_sizes_than_that_of_evaluation_shows_objects_at_others(tmp_path):
    """An object in an image of 16 pixels is half as large as in one of 32."""
    sizes = folder(
        tmp_path, augmentation="none", train_sizes=[16, 32, 64], input_size=[3, 32, 32], scale_jitter=[0.5, 1]
    )
    assert trained_sizes(sizes, 1.0, 32) == (0.25, 2.0)
    one = folder(tmp_path, augmentation="none", input_size=[3, 32, 32])
    assert trained_sizes(one, 1.0, 64) == (0.5, 0.5)
    assert trained_sizes(ROOT / "hub" / "models" / "resnet20_cifar10", 1.0, 64) == (0.5, 0.5)  # of its config.json
    rkrc = folder(tmp_path, augmentation="timm", timm={"train_crop_mode": "rkrc"}, train_sizes=[32, 64])
    assert trained_sizes(rkrc, 0.9, 32) == pytest.approx((0.9, 2 * 0.9 * 0.8**-0.5))
