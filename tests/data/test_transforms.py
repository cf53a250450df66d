"""Transforms against timm's own and against loops over single images."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import timm.data
import torch
from PIL import Image

from tests.helpers.preprocessing import preprocessing
from timm_wsms.data import (
    DataSettings,
    TimmAugmentation,
    data_config,
    eval_transform,
    load_splits,
    make_loader,
    train_transform,
)
from timm_wsms.data.transforms import normalize
from timm_wsms.errors import UserError

CONFIG = preprocessing(12, 10)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return timm.create_model("test_resnet")


def test_data_config_is_the_models_own_unless_the_recipe_says_otherwise(model):
    assert data_config(model, DataSettings()) == timm.data.resolve_data_config(model=model)
    given = DataSettings(input_size=[1, 28, 24], mean=[0.13], std=[0.3], crop_pct=1.0)
    expected = {"input_size": (1, 28, 24), "mean": (0.13,), "std": (0.3,), "crop_pct": 1.0}
    assert data_config(model, given) == {**timm.data.resolve_data_config(model=model), **expected}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"input_size": [32, 32]}, "data.input_size"),
        ({"input_size": [4, 32, 32]}, "data.input_size"),
        ({"mean": [0.5, 0.5]}, "data.mean"),
        ({"input_size": [1, 28, 28]}, "data.mean"),
        ({"std": [0.2, 0.0, 0.2]}, "data.std"),
        ({"crop_pct": 1.5}, "data.crop_pct"),
        ({"input_size": [3, 9000, 9000], "crop_pct": 1.0}, r"data\.input_size .* too large; give at most 8192 pixels"),
        ({"train_sizes": [32, 20000]}, r"data\.train_sizes \[32, 20000\] is too large"),
        ({"train_sizes": [32, 8000], "crop_pct": 0.8}, r"data\.crop_pct 0\.8 of \[32, 8000\] is too small; raise it"),
    ],
)
def test_data_config_names_the_setting_it_cannot_use(model, settings, named):
    with pytest.raises(UserError, match=named):
        data_config(model, DataSettings(**settings))


@pytest.mark.parametrize(
    "own",
    [
        {"crop_pct": 1e-9},
        {"crop_pct": "0.9"},
        {"crop_pct": float("nan")},
        {"interpolation": "evil"},
        {"mean": ["a", "b", "c"], "std": ["a", "b", "c"]},
        {"std": 3},
    ],
)
def test_a_strangers_config_is_refused_in_one_line(model, own):
    stranger = SimpleNamespace(pretrained_cfg={**model.pretrained_cfg, **own})
    with pytest.raises(UserError) as caught:
        data_config(stranger, DataSettings())
    assert "\n" not in str(caught.value) and any(word in str(caught.value) for word in ("config", "crop_pct"))


def test_normalize_gives_the_bits_of_timms_eval_transform():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)
    transform = timm.data.create_transform(**CONFIG, is_training=False)
    expected = torch.stack([transform(Image.fromarray(image)) for image in pixels])
    images = normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2), CONFIG["mean"], CONFIG["std"])
    assert images.is_contiguous() and torch.equal(images, expected)


@pytest.mark.parametrize(
    "tag",
    [
        "resnet50.a1_in1k",  # bicubic, as the others are
        "resnet50.tv_in1k",  # bilinear
        "vit_base_patch16_clip_224.openai",
        "convnext_tiny.in12k_ft_in1k_384",  # squashes, where others cut
        "tf_efficientnet_b0.in1k",
    ],
)
def test_evaluation_of_odd_sizes_has_the_pixels_of_timms_loader(tag, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (37, 61), (301, 77), (224, 224), (225, 223), (5, 400), (500, 375), (501, 333)]
    for number, (width, height) in enumerate(sizes):
        for split in ("train", "test"):
            path = tmp_path / "d" / split / f"class{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    model = torch.nn.Identity()
    model.pretrained_cfg = timm.get_pretrained_cfg(tag).to_dict()
    settings = DataSettings(str(tmp_path / "d"), augmentation="timm", workers=0)
    _, test = load_splits(settings, 0)
    (ours,) = make_loader(test, settings, data_config(model, settings), batch_size=8, train=False)
    dataset = timm.data.ImageDataset(str(tmp_path / "d" / "test"))
    config = timm.data.resolve_data_config(model=model)
    (timms,) = timm.data.create_loader(
        *(dataset, config.pop("input_size"), 8),
        **config,
        use_prefetcher=False,
        num_workers=0,
        persistent_workers=False,
    )
    assert torch.equal(ours.images, timms[0]) and torch.equal(ours.labels, timms[1])
    assert len(timms[0]) == 8 and len(ours.images.unique()) > 200


def test_train_transform_without_timms_augmentation_is_the_eval_transform():
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 31, 3), dtype=np.uint8))
    expected = timm.data.create_transform(**CONFIG, is_training=False)(image)
    for augmentation in ("none", "pad_crop_flip"):
        assert torch.equal(train_transform(CONFIG, DataSettings(augmentation=augmentation))(image), expected)
    assert torch.equal(eval_transform(CONFIG)(image), expected)


@pytest.mark.parametrize("interpolation", [None, "bicubic"])
def test_timms_augmentation_gets_every_setting(interpolation):
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 31, 3), dtype=np.uint8))
    chosen = {"scale": (0.5, 1.0), "vflip": 0.5, "color_jitter": [0.1, 0.2, 0.3, 0.1], "re_prob": 0.9}
    augmentation = TimmAugmentation(**chosen, interpolation=interpolation)
    settings = DataSettings(augmentation="timm", timm=augmentation)
    arguments = {**CONFIG, **chosen, "interpolation": interpolation or "bilinear"}
    results = []
    for transform in (
        train_transform(CONFIG, settings),
        timm.data.create_transform(**arguments, is_training=True),
    ):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        results.append(torch.stack([transform(image) for _ in range(8)]))
    assert torch.equal(*results) and not torch.equal(results[0][0], results[0][1])


def test_an_unknown_auto_augment_policy_is_the_users_mistake():
    settings = DataSettings(augmentation="timm", timm=TimmAugmentation(auto_augment="nonsense"))
    with pytest.raises(UserError, match=r"data\.timm"):
        train_transform(CONFIG, settings)
