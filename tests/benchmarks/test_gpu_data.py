"""CIFAR-10 in parts for a GPU's machine: nothing is lost, and its augmentation and recipe are those of the paper."""

import numpy as np
import pytest
import torch

from benchmarks.cifar10 import gpu_data, gpu_forms
from tests.helpers.paths import ROOT
from tests.helpers.table2 import CPU, pixels, write_cifar10
from timm_wsms.errors import UserError


@pytest.fixture
def parquet(tmp_path):
    """A folder like CIFAR-10's, its pixels and labels."""
    return tmp_path / "cifar10", *write_cifar10(tmp_path / "cifar10")


def test_packing_loses_nothing_and_parts_are_small(parquet, tmp_path):
    source, images, labels = parquet
    whole = sum(path.stat().st_size for path in source.iterdir())
    parts = gpu_data.pack(source, tmp_path / "parts", limit=whole // 3)
    assert len(parts) > 2 and max(part.stat().st_size for part in parts) < 1.1 * whole / 3
    found = gpu_data.load(tmp_path / "parts")
    np.testing.assert_array_equal(np.concatenate([found.train_images, found.test_images]), images)
    np.testing.assert_array_equal(np.concatenate([found.train_labels, found.test_labels]), labels)
    assert len(found.train_labels) == 48


def test_a_part_that_is_missing_or_of_another_packing(parquet, tmp_path):
    source, *_ = parquet
    parts = gpu_data.pack(source, tmp_path / "parts", limit=60_000)
    first = parts[0].read_bytes()
    (source / "test-0.parquet").unlink()
    with pytest.raises(UserError, match=r"has no test\*\.parquet"):
        gpu_data.pack(source, tmp_path / "parts")
    (source / "train-0.parquet").rename(source / "test-0.parquet")
    gpu_data.pack(source, tmp_path / "parts", limit=60_000)
    parts[0].write_bytes(first)
    with pytest.raises(UserError, match="not those that were packed"):
        gpu_data.load(tmp_path / "parts")
    parts[1].unlink()
    with pytest.raises(UserError, match="part2 is missing"):
        gpu_data.load(tmp_path / "parts")


def test_augmentation_is_pad_crop_flip():
    """Against the definition image by image, and against what `train_accelerate.py` does."""
    from timm_wsms.data.batch_augmentation import pad_crop_flip  # not at the top: a lent GPU's machine lacks `datasets`

    images, labels = pixels(30)
    source = gpu_data.Augmenter(images, labels, CPU, torch.float32)
    out, classes = torch.zeros(24, 32, 32, 3), torch.zeros(24, dtype=torch.int64)
    source.fill(5, 2, out, classes)
    order, corners, flips = source.draw(5, 2, 24)
    assert len(set(order)) == 24 and flips.any() and not flips.all() and set(corners.ravel()) == set(range(9))
    normalized = (images / 255 - np.array(gpu_data.CIFAR_MEAN)) / np.array(gpu_data.CIFAR_STD)
    for i, (image, (row, column), flip) in enumerate(zip(order, corners, flips, strict=True)):
        crop = np.pad(normalized[image], ((4, 4), (4, 4), (0, 0)))[row : row + 32, column : column + 32]
        np.testing.assert_allclose(out[i], crop[:, ::-1] if flip else crop, atol=1e-6)
        assert classes[i] == labels[image]
    ours = torch.from_numpy(normalized[order]).permute(0, 3, 1, 2)
    theirs = pad_crop_flip(ours, torch.from_numpy(corners), torch.from_numpy(flips))
    np.testing.assert_allclose(out.permute(0, 3, 1, 2), theirs, atol=1e-6)
    assert (source.draw(5, 3, 24)[0] != order).any() and (source.draw(6, 2, 24)[0] != order).any()


def test_recipe_is_the_papers():
    from timm_wsms.training.schedule import Schedule
    from timm_wsms.training.settings import parse

    settings = parse(["--recipe", str(ROOT / "recipes/cifar10_resnet110.yaml")])
    optimizer = torch.optim.SGD([torch.zeros(1)], settings.lr)
    schedule = Schedule(optimizer, settings, updates_per_epoch=1)
    expected = [schedule.set(epoch) for epoch in range(settings.epochs)]
    np.testing.assert_allclose(gpu_forms.learning_rates(), expected)
    assert gpu_forms.learning_rates(40) == [0.01, *[0.1] * 18, *[pytest.approx(0.01)] * 10, *[pytest.approx(1e-3)] * 11]
    found = settings.batch_size, settings.optimizer.momentum, settings.optimizer.weight_decay
    assert found == (gpu_forms.BATCH, gpu_forms.MOMENTUM, gpu_forms.WEIGHT_DECAY)
