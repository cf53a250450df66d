"""The order of a stream against what it is defined to be, on any number of processes and workers, from any step on."""

import io
import itertools
from collections import Counter
from dataclasses import replace

import datasets
import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from tests.helpers.preprocessing import preprocessing
from tests.helpers.streams import contents, places, write_shards
from timm_wsms.data import DataSettings, Stream, TimmAugmentation, load_data, make_loader
from timm_wsms.data.columns import Columns
from timm_wsms.data.stream_loader import lane_count, read_ahead, shuffled, take_turns
from timm_wsms.errors import UserError

CONFIG = preprocessing(32)
TRAIN, TEST = (9, 7, 11, 3, 12, 8), (4, 1, 5)
PLAIN = DataSettings(streaming=True, shuffle_buffer=10, lanes=6, workers=0)
TIMM = replace(PLAIN, augmentation="timm", timm=TimmAugmentation(re_prob=0.5, auto_augment="rand-m5-inc1"))
PAD_CROP_FLIP = replace(PLAIN, augmentation="pad_crop_flip")
JITTER = replace(PAD_CROP_FLIP, scale_jitter=(0.5, 2.0))


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "png")
    return file.getvalue()


PNG = png()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return str(write_shards(tmp_path_factory.mktemp("source") / "shards"))


def loader_of(source, settings=PLAIN, *, train=True, batch_size=4, epoch=1, start=0, **arguments):
    split = load_data(replace(settings, source=source), 0)[0 if train else 1]
    loader = make_loader(split, settings, CONFIG, batch_size=batch_size, train=train, **arguments)
    loader.set_epoch(epoch, start)
    return loader


def indices(batches) -> list[int]:
    return [int(index) for batch in batches for index in batch.index]


def assert_same(batches, expected) -> None:
    batches, expected = list(batches), list(expected)
    assert len(batches) == len(expected) > 0
    for one, other in zip(batches, expected, strict=True):
        assert all(torch.equal(*fields) for fields in zip(one, other, strict=True))


def drawn_from_buffer(items: list, size: int, rng: np.random.Generator) -> list:
    """A buffer as it is drawn on a blackboard."""
    buffer, out = items[:size], []
    for item in items[size:]:
        place = rng.integers(len(buffer))
        out.append(buffer[place])
        buffer[place] = item
    return out + [buffer[place] for place in rng.permutation(len(buffer))]


@pytest.mark.parametrize("lanes", [1, 2, 6])
def test_the_order_is_what_it_is_defined_to_be(source, lanes):
    batches = list(loader_of(source, replace(PLAIN, lanes=lanes), seed=3, epoch=5))
    of_shard = [[shard * 10**9 + row for row in range(size)] for shard, size in enumerate(TRAIN)]
    orders = []
    for lane in range(lanes):
        orders.append([])
        for again in range(3):  # more than enough
            shards = np.random.default_rng((3, 5, 0, again)).permutation(6)[lane::lanes]
            rows = list(itertools.chain.from_iterable(of_shard[shard] for shard in shards))
            rng = np.random.default_rng((3, 5, 0, again, lane))
            orders[lane] += drawn_from_buffer(rows, -(-10 // lanes), rng)
    assert indices(batches) == [index for turn in zip(*orders, strict=False) for index in turn][:48]
    assert [len(batch.labels) for batch in batches] == [4] * 12  # the last two of 50 images make no batch
    labels = contents("train", 50)[1]
    for batch in batches:
        assert batch.labels.dtype == batch.index.dtype == torch.int64
        assert batch.labels.tolist() == [labels[places(TRAIN)[index]] for index in batch.index.tolist()]


def test_each_image_is_cropped_and_flipped_by_draws_of_its_own(source):
    transform, found = timm.data.create_transform(**CONFIG, is_training=False), set()
    for batch in loader_of(source, PAD_CROP_FLIP, seed=3, epoch=5):
        for index, image, _ in zip(*batch, strict=True):
            rng = np.random.default_rng((3, 5, 1, int(index)))
            (top, left), flip = rng.integers(0, 9, (1, 2))[0], rng.random(1)[0] < 0.5
            pixels = contents("train", 50)[0][places(TRAIN)[int(index)]]
            padded = np.pad(transform(Image.fromarray(pixels)).numpy(), ((0, 0), (4, 4), (4, 4)))
            crop = padded[:, top : top + 32, left : left + 32]
            np.testing.assert_array_equal(crop[..., ::-1] if flip else crop, image)
            found.add((top, left, flip))
    assert len(found) > 20


def test_an_epoch_of_one_lane_has_no_image_twice_and_shuffles_all_of_them(source):
    settings = replace(PLAIN, lanes=1)
    order = indices(loader_of(source, settings))
    assert len(set(order)) == 48 and order == indices(loader_of(source, settings))
    for other in (loader_of(source, settings, epoch=2), loader_of(source, settings, seed=1)):
        assert Counter(indices(other)) != Counter(order) or indices(other) != order


def test_lanes_of_unequal_length_are_filled_up_or_left_before_their_end(source):
    order = indices(loader_of(source))  # six files of 3 to 12 images, a lane each, and every lane has to give 8
    counts = Counter(order)
    assert len(order) == 48 and max(counts.values()) <= 3
    shards = Counter(index // 10**9 for index in counts)
    assert shards[3] == 3  # the smallest comes whole


@pytest.mark.parametrize(
    "settings", [PLAIN, PAD_CROP_FLIP, JITTER, TIMM], ids=["plain", "pad_crop_flip", "jitter", "timm"]
)
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_training_is_the_same_on_any_number_of_processes(source, settings, world_size):
    alone = list(loader_of(source, settings, batch_size=12))
    loaders = [
        loader_of(source, settings, batch_size=12 // world_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert {len(loader) for loader in loaders} == {len(alone)} == {4}
    for whole, parts in zip(alone, zip(*loaders, strict=True), strict=True):
        for field, fields in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(torch.stack(fields, dim=1).flatten(0, 1), field)  # they take turns


@pytest.mark.parametrize(("lanes", "own"), [(4, [[0, 2], [1, 3]]), (2, [[0, 2], [1, 3]]), (1, [[0, 1, 2, 3]] * 2)])
def test_a_process_reads_its_own_files_alone_if_it_can(tmp_path, monkeypatch, lanes, own):
    source = str(write_shards(tmp_path / "equal", train=(8, 8, 8, 8), test=(2, 3, 1)))
    read: list[int] = []
    original = Stream._read
    monkeypatch.setattr(Stream, "_read", lambda self, shard: read.append(shard) or original(self, shard))
    dealt = np.random.default_rng((0, 1, 0, 0)).permutation(4)
    for rank in range(2):
        share = {"rank": rank, "world_size": 2}
        assert len(list(loader_of(source, replace(PLAIN, lanes=lanes), **share))) == 4
        assert sorted(read) == sorted(dealt[own[rank]])
        read.clear()
        list(loader_of(source, replace(PLAIN, lanes=lanes), train=False, **share))
        assert read == [[0, 2], [1]][rank]
        read.clear()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("settings", [PAD_CROP_FLIP, TIMM], ids=lambda s: s.augmentation)
def test_an_epoch_begun_in_the_middle_is_the_tail_of_a_whole_one(source, settings, workers):
    for lanes, rank, world_size in ((6, 0, 1), (4, 1, 2)):
        whole_settings = replace(settings, lanes=lanes)
        arguments = {"batch_size": 2, "seed": 7, "rank": rank, "world_size": world_size}
        whole = list(loader_of(source, whole_settings, epoch=2, **arguments))
        resumed = loader_of(source, replace(whole_settings, workers=workers), **arguments)
        next(iter(resumed))  # an epoch that breaks off
        for start in (1, 5, len(whole) - 1, 0):
            resumed.set_epoch(2, start)
            assert len(resumed) == len(whole)
            assert_same(resumed, whole[start:])
        resumed.set_epoch(3)
        assert_same(resumed, loader_of(source, whole_settings, epoch=3, **arguments))


def test_what_comes_before_the_start_is_not_decoded(source, monkeypatch):
    decoded = []
    original = Stream.image
    monkeypatch.setattr(
        Stream, "image", lambda self, index, raw, **crop: decoded.append(index) or original(self, index, raw)
    )
    assert indices(loader_of(source, start=10)) == decoded and len(decoded) == 8


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_sees_every_image_once_as_timms_transform_gives_it(source, world_size):
    ranks = [
        list(loader_of(source, train=False, batch_size=3, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    batches = list(itertools.chain.from_iterable(ranks))
    assert sorted(indices(batches)) == sorted(places(TEST))
    pixels, labels = contents("test", 10)
    transform = timm.data.create_transform(**CONFIG, is_training=False)
    for batch in batches:
        for index, image, label in zip(*batch, strict=True):
            place = places(TEST)[int(index)]
            assert torch.equal(image, transform(Image.fromarray(pixels[place]))) and label == labels[place]


def test_bad_images_are_left_out_and_their_labels_with_them(tmp_path):
    source = write_shards(tmp_path / "d", train=(6, 6))
    split = load_data(DataSettings(str(source), streaming=True), 0)[0]
    original = split.image

    def image(index, undecoded, **crop):
        return original(index, {"bytes": b"no image", "path": None} if index in (2, 10**9 + 5) else undecoded, **crop)

    split.image = image
    settings = replace(PLAIN, on_bad_image="skip")
    loader = make_loader(split, settings, CONFIG, batch_size=5, train=False)
    batches = list(loader)
    assert loader.left_out == {2, 10**9 + 5} and loader.skipped == 2
    labels = contents("train", 12)[1]
    assert [(int(i), int(label)) for b in batches for i, label in zip(b.index, b.labels, strict=True)] == [
        (index, labels[place]) for index, place in places((6, 6)).items() if index not in loader.left_out
    ]
    with pytest.raises(UserError, match=r"Row 2 of split 'train, shard 0' cannot be decoded"):
        list(make_loader(split, PLAIN, CONFIG, batch_size=12, train=False))


def test_a_stream_that_is_too_small_is_refused(source):
    with pytest.raises(UserError, match="50 images, fewer than one batch of 60; lower batch_size"):
        loader_of(source, batch_size=30, world_size=2)


def of_sizes(sizes: list[int]):
    for size in sizes:
        yield from ({"image": {"bytes": PNG, "path": None}, "label": 0} for _ in range(size))


def test_a_shard_without_rows_that_would_be_a_lane_of_its_own_is_an_error():
    rows = datasets.IterableDataset.from_generator(of_sizes, gen_kwargs={"sizes": [6, 0]})
    split = Stream("train", 6, ["cat"], rows, Columns("image", "label"))
    assert split.shards == 2
    with pytest.raises(UserError, match=r"'train' is empty, or parts of it are; set data\.lanes=1"):
        list(make_loader(split, replace(PLAIN, lanes=2), CONFIG, batch_size=2, train=True))
    batches = list(make_loader(split, replace(PLAIN, lanes=1), CONFIG, batch_size=2, train=True))
    assert sorted(indices(batches)) == list(range(6))


# --- the parts


@pytest.mark.parametrize(
    ("shards", "wanted", "lanes"), [(294, 8, 8), (128, 8, 8), (16, 8, 8), (6, 8, 2), (5, 8, 1), (1, 8, 1), (9, 6, 3)]
)
def test_there_are_as_many_lanes_as_can_be_about_equally_long(shards, wanted, lanes):
    assert lane_count(shards, wanted) == lanes


@pytest.mark.parametrize(("count", "size"), [(50, 7), (50, 1), (5, 9), (0, 3)])
def test_a_buffer_lets_nothing_come_too_early_and_loses_nothing(count, size):
    out = list(shuffled(iter(range(count)), size, np.random.default_rng(0)))
    assert sorted(out) == list(range(count))
    assert all(item < place + size for place, item in enumerate(out))
    assert out == list(range(count)) or size > 1


@pytest.mark.parametrize(("lanes", "world_size"), itertools.product((1, 2, 3, 4, 6), (1, 2, 3, 4, 5)))
def test_processes_deal_the_lanes_turns_among_themselves(lanes, world_size):
    rows = [[(lane, place) for place in range(20)] for lane in range(lanes)]
    order = [row for turn in zip(*rows, strict=True) for row in turn]
    for rank in range(world_size):
        mine = list(take_turns([iter(lane) for lane in rows], rank, world_size))
        assert mine == order[rank::world_size]


def test_reading_ahead_keeps_order_and_passes_errors_on():
    def broken():
        yield from range(5)
        raise UserError("gone")

    assert list(read_ahead(iter(range(7)), 3)) == list(range(7))
    seen = []
    with pytest.raises(UserError, match="gone"):
        for item in read_ahead(broken(), 2):
            seen.append(item)
    assert seen == list(range(5))
    taken = itertools.count()
    ahead = read_ahead(taken, 2)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    ahead.close()
    assert next(taken) <= 6  # it stops reading
