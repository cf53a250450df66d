"""Results on the disk: what makes them another, where they lie, and that damaged ones are computed anew."""

import dataclasses

import numpy as np
import pytest
import timm
import torch

import timm_wsms  # noqa: F401  registers the names
from timm_wsms.data import DataSettings, Split, load_splits
from timm_wsms.errors import UserError
from timm_wsms.evaluation.result_cache import cached, data_fingerprint, model_hash, settings_hash


class Computing:
    """Gives other arrays each time, and counts."""

    def __init__(self):
        self.times = 0

    def __call__(self):
        self.times += 1
        return {"predicted": np.full((2, 3), self.times), "share": np.array([0.1 * self.times])}


def same(arrays, times):
    np.testing.assert_array_equal(arrays["predicted"], np.full((2, 3), times))
    assert arrays["predicted"].dtype == np.int64 and arrays["share"][0] == 0.1 * times


def test_computed_once(tmp_path):
    compute = Computing()
    for _ in range(2):
        same(cached("scale", {"weights": "a", "factors": (0.5, 1.0)}, compute, str(tmp_path)), 1)
    same(cached("scale", {"weights": "b", "factors": (0.5, 1.0)}, compute, str(tmp_path)), 2)
    same(cached("stages", {"weights": "a", "factors": (0.5, 1.0)}, compute, str(tmp_path)), 3)
    same(cached("scale", {"factors": [0.5, 1.0], "weights": "a"}, compute, str(tmp_path)), 1)


def test_another_version_of_the_package(tmp_path, monkeypatch):
    compute = Computing()
    cached("scale", {}, compute, str(tmp_path))
    monkeypatch.setattr("timm_wsms.evaluation.result_cache.version", lambda package: "next")
    same(cached("scale", {}, compute, str(tmp_path)), 2)


def test_off(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path))
    compute = Computing()
    for times in (1, 2):
        same(cached("scale", {}, compute, "off"), times)
    assert not any(tmp_path.iterdir())


def test_place_is_the_hub_librarys(tmp_path, monkeypatch):
    import huggingface_hub.utils._cache_assets as assets

    monkeypatch.setattr(assets, "HF_ASSETS_CACHE", str(tmp_path))  # what the environment variable sets at import
    cached("scale", {}, Computing())
    (file,) = tmp_path.rglob("*.safetensors")
    assert file.relative_to(tmp_path).parts[:2] == ("timm-wsms", "scale")


@pytest.mark.parametrize("damage", [b"", b"x" * 100])
def test_damaged_file_is_computed_anew(tmp_path, damage):
    compute = Computing()
    cached("scale", {}, compute, str(tmp_path))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(damage)
    same(cached("scale", {}, compute, str(tmp_path)), 2)
    same(cached("scale", {}, compute, str(tmp_path)), 2)


def test_place_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--cache off"):
        cached("scale", {}, Computing(), str(tmp_path / "file"))


def test_model_hash():
    def build(**kwargs):
        torch.manual_seed(0)
        return timm.create_model("wsms_resnet20_cifar", num_classes=4, **kwargs)

    model = build()
    own = model_hash(model)
    assert model_hash(build()) == own and model_hash(build().to(memory_format=torch.channels_last)) == own
    assert model_hash(build(global_pool="max")) != own
    model.integration.norm.running_var.add_(1e-3)
    assert model_hash(model) != own


def test_what_a_model_computes_beside_its_weights_is_told_apart():
    def build(name="wsmean_test_resnet", **kwargs):
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=4, **kwargs)

    networks = [build(pyramid=[1, 0.5]), build(pyramid=[1, 0.7]), build(pyramid=[1, 1.4])]
    assert len({model_hash(network) for network in networks}) == 1  # the same weights
    assert len({settings_hash(network) for network in networks}) == 3
    network = networks[0].eval()
    own = settings_hash(network)
    network(torch.zeros(1, 3, 64, 64))
    assert settings_hash(network) == settings_hash(build()) == settings_hash(network.train()) == own
    pools = [build("test_vit", global_pool=pool) for pool in ("avg", "max", "token")]
    assert len({settings_hash(model) for model in pools}) == 3


def test_data_fingerprint(tmp_path):
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    split = Split("test", np.arange(4), list("abcd"), pixels=pixels)
    own = data_fingerprint(split)
    changed = pixels.copy()
    changed[3, 7, 7, 2] = 1
    others = [
        dataclasses.replace(split, pixels=changed),
        dataclasses.replace(split, labels=np.array([0, 1, 3, 2])),
        dataclasses.replace(split, class_names=list("abdc")),
        split.take(range(3)),
    ]
    assert data_fingerprint(dataclasses.replace(split, pixels=pixels.copy())) == own
    assert len({own, *map(data_fingerprint, others)}) == 5


def test_fingerprint_of_images_that_stay_on_the_disk(tmp_path):
    from PIL import Image

    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (80 + number, 90)).save(folder / f"{number}.png")
    settings = DataSettings(source=str(tmp_path))
    first, again = (load_splits(settings, 0)[1] for _ in range(2))
    assert first.pixels is None and data_fingerprint(first) == data_fingerprint(again)
    assert data_fingerprint(first.take(range(2))) != data_fingerprint(first)
