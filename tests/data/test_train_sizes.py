"""`data.train_sizes`: every training batch at one of several sizes."""

from dataclasses import replace

import pytest
import torch
from torchvision.transforms.functional import resize

from tests.helpers.preprocessing import preprocessing
from tests.helpers.splits import lazy_split, memory_split
from tests.helpers.streams import write_shards
from timm_wsms.data import DataSettings, TimmAugmentation, load_data, make_loader
from timm_wsms.errors import UserError

CONFIG = preprocessing(20)
SIDES = [12, 20, 24]
PAD = DataSettings(augmentation="pad_crop_flip", train_sizes=SIDES, workers=0)
TIMM = DataSettings(augmentation="timm", timm=TimmAugmentation(re_prob=0.3), train_sizes=SIDES, workers=0)


def loader_of(split, settings, *, epoch=3, start=0, train=True, batch_size=2, **arguments):
    loader = make_loader(split, settings, CONFIG, batch_size=batch_size, train=train, seed=5, **arguments)
    loader.set_epoch(epoch, start)
    return loader


def sides(batches) -> list[int]:
    shapes = [tuple(batch.images.shape[1:]) for batch in batches]
    assert all(shape[0] == 3 and shape[1] == shape[2] for shape in shapes)
    return [shape[1] for shape in shapes]


def without_sizes(split, settings, side):
    """What a loader yields whose network is used with images of one of the sizes."""
    settings = replace(settings, train_sizes=None)
    loader = make_loader(split, settings, preprocessing(side), batch_size=2, train=True, seed=5)
    loader.set_epoch(3)
    return list(loader)


@pytest.mark.parametrize(
    ("split", "settings"),
    [
        (memory_split(60, 30, 30), TIMM),
        (lazy_split(memory_split(60, 30, 30)), TIMM),
        (lazy_split(memory_split(60, 30, 30)), replace(TIMM, scale_jitter=(0.5, 2))),
        (lazy_split(memory_split(60, 30, 30)), PAD),
    ],
    ids=["in memory, timm", "files, timm", "files, timm with jitter", "files, pad_crop_flip"],
)
def test_each_batch_is_what_a_network_of_that_size_is_trained_with(split, settings):
    """As with timm's `--train-img-sizes`, which has a transform for each size: no batch is resized twice."""
    batches = list(loader_of(split, settings))
    drawn = sides(batches)
    assert len(drawn) == 30 and set(drawn) == set(SIDES)
    assert sides(loader_of(split, settings, epoch=4)) != drawn  # drawn anew
    expected = {side: without_sizes(split, settings, side) for side in SIDES}
    for step, (batch, side) in enumerate(zip(batches, drawn, strict=True)):
        assert all(torch.equal(*fields) for fields in zip(batch, expected[side][step], strict=True))


def test_small_images_that_are_kept_decoded_are_resized_batch_by_batch():
    split = memory_split(60, 30, 30)
    batches = list(loader_of(split, PAD))
    drawn, largest = sides(batches), without_sizes(split, PAD, 24)
    assert set(drawn) == set(SIDES)
    for batch, whole, side in zip(batches, largest, drawn, strict=True):
        assert torch.equal(batch.index, whole.index) and torch.equal(batch.labels, whole.labels)
        expected = whole.images if side == 24 else resize(whole.images, [side, side], antialias=True)
        torch.testing.assert_close(batch.images, expected, rtol=0, atol=1e-5)


def test_small_images_are_not_enlarged_before_they_are_resized():
    """A batch at the images' own size is sharp: what it is without `train_sizes`, pixel for pixel."""
    split, settings = memory_split(60, 20, 20), replace(PAD, train_sizes=[12, 20, 32])
    batches, own = list(loader_of(split, settings)), loader_of(split, replace(settings, train_sizes=None))
    drawn = sides(batches)
    assert set(drawn) == {12, 20, 32}
    for batch, whole, side in zip(batches, own, drawn, strict=True):
        assert torch.equal(batch.index, whole.index)
        expected = whole.images if side == 20 else resize(whole.images, [side, side], antialias=True)
        torch.testing.assert_close(batch.images, expected, rtol=0, atol=0 if side == 20 else 1e-5)


@pytest.mark.parametrize("settings", [PAD, TIMM], ids=lambda settings: settings.augmentation)
def test_sizes_are_the_same_in_all_processes_and_after_a_resume(settings):
    split = lazy_split(memory_split(48))
    alone = sides(loader_of(split, settings, batch_size=4))
    for rank in (0, 1):
        of_rank = list(loader_of(split, settings, rank=rank, world_size=2))
        assert sides(of_rank) == alone
        for start in (1, 7):
            tail = list(loader_of(split, settings, rank=rank, world_size=2, start=start))
            assert len(tail) == 12 - start
            for batch, expected in zip(tail, of_rank[start:], strict=True):
                assert all(torch.equal(*fields) for fields in zip(batch, expected, strict=True))


def test_a_stream_has_the_same_sizes_on_any_number_of_processes_and_after_a_resume(tmp_path):
    source = str(write_shards(tmp_path / "shards"))
    settings = replace(TIMM, source=source, streaming=True, shuffle_buffer=10)
    split = load_data(settings, 0)[0]
    alone = sides(loader_of(split, settings, batch_size=4))
    assert len(alone) == 12 and set(alone) == set(SIDES)
    whole = list(loader_of(split, settings, rank=1, world_size=2))
    assert sides(whole) == alone
    for batch, expected in zip(loader_of(split, settings, rank=1, world_size=2, start=5), whole[5:], strict=True):
        assert all(torch.equal(*fields) for fields in zip(batch, expected, strict=True))


def test_each_batch_of_a_stream_is_what_a_network_of_that_size_is_trained_with(tmp_path):
    source = str(write_shards(tmp_path / "shards"))
    settings = replace(TIMM, source=source, streaming=True, shuffle_buffer=10)
    split = load_data(settings, 0)[0]
    batches = list(loader_of(split, settings))
    drawn = sides(batches)
    expected = {side: without_sizes(split, settings, side) for side in SIDES}
    assert set(drawn) == set(SIDES)
    for step, (batch, side) in enumerate(zip(batches, drawn, strict=True)):
        assert all(torch.equal(*fields) for fields in zip(batch, expected[side][step], strict=True))


def test_evaluation_stays_at_the_input_size():
    assert set(sides(loader_of(memory_split(6), PAD, train=False))) == {20}


@pytest.mark.parametrize("given", [[], [0, 20], [-3]])
def test_no_sizes_are_refused(given):
    with pytest.raises(UserError, match=r"data\.train_sizes is .* give sides in pixels"):
        load_data(DataSettings(train_sizes=given), 0)
