"""Batches against timm's transforms, loops over single images, and themselves on other numbers of processes."""

import itertools
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from timm.data.random_erasing import RandomErasing

from tests.helpers.paths import ROOT
from tests.helpers.preprocessing import preprocessing
from tests.helpers.splits import lazy_split, memory_split
from timm_wsms.data import DataSettings, Split, TimmAugmentation, make_loader
from timm_wsms.data.loader import MemoryLoader, PerImageLoader, has_room
from timm_wsms.data.split import fits_in_memory
from timm_wsms.errors import UserError

CONFIG = preprocessing(12)
GRAY = {**CONFIG, "input_size": (1, 12, 12), "mean": (0.4,), "std": (0.2,)}
GPU = torch.device("cuda", 0)
TIMM = DataSettings(augmentation="timm", timm=TimmAugmentation(re_prob=0.5, auto_augment="rand-m5-inc1"), workers=0)
PAD_CROP_FLIP = DataSettings(augmentation="pad_crop_flip", workers=0)
JITTER = DataSettings(augmentation="pad_crop_flip", scale_jitter=(0.5, 2.0), workers=0)


def epoch_of(split, settings=PAD_CROP_FLIP, config=CONFIG, *, batch_size=4, epoch=0, train=True, **arguments):
    loader = make_loader(split, settings, config, batch_size=batch_size, train=train, **arguments)
    loader.set_epoch(epoch)
    return list(loader)


def indices(batches) -> list[int]:
    return torch.cat([batch.index for batch in batches]).tolist()


def images_by_index(batches) -> dict[int, torch.Tensor]:
    return {int(i): image for batch in batches for i, image in zip(batch.index, batch.images, strict=True)}


def assert_same_images(first, second) -> None:
    first, second = images_by_index(first), images_by_index(second)
    assert first and first.keys() == second.keys()
    assert all(torch.equal(first[index], second[index]) for index in first)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("config", "size"),
    [
        (CONFIG, (12, 12)),
        ({**CONFIG, "crop_pct": 0.8}, (12, 12)),
        (CONFIG, (9, 14)),
        ({**CONFIG, "input_size": (3, 16, 12)}, (12, 12)),
        ({**CONFIG, "input_size": (3, 80, 80)}, (12, 12)),
        (GRAY, (12, 12)),
        (GRAY, (20, 12)),
    ],
)
def test_evaluation_gives_what_timms_transform_gives(lazy, config, size):
    split = memory_split(7, *size)
    transform = timm.data.create_transform(**config, is_training=False)
    loaded = lazy_split(split) if lazy else split
    batches = epoch_of(loaded, DataSettings(workers=0), config, batch_size=3, train=False)
    assert indices(batches) == list(range(7)) and [len(batch.labels) for batch in batches] == [3, 3, 1]
    for index, image in images_by_index(batches).items():
        expected = transform(split.image(index).convert("RGB" if config["input_size"][0] == 3 else "L"))
        assert image.shape == config["input_size"] and image.dtype == torch.float32
        assert torch.equal(image, expected)
    labels = torch.cat([batch.labels for batch in batches])
    assert labels.dtype == torch.int64 and labels.tolist() == split.labels.tolist()


def test_small_images_need_no_workers_but_timms_augmentation_and_large_inputs_do():
    split, large = memory_split(), {**CONFIG, "input_size": (3, 80, 80)}
    arguments = {"batch_size": 4, "train": True}
    assert isinstance(make_loader(split, PAD_CROP_FLIP, CONFIG, **arguments), MemoryLoader)
    assert isinstance(make_loader(split, TIMM, CONFIG, **arguments), PerImageLoader)
    assert isinstance(make_loader(split, PAD_CROP_FLIP, large, **arguments), PerImageLoader)
    assert isinstance(make_loader(lazy_split(split), PAD_CROP_FLIP, CONFIG, **arguments), PerImageLoader)
    assert isinstance(make_loader(split, TIMM, CONFIG, batch_size=4, train=False), MemoryLoader)


def test_images_are_normalized_and_augmented_where_the_network_is(monkeypatch):
    monkeypatch.setattr("timm_wsms.data.loader.has_room", lambda device, size: device.type == "meta")
    arguments = {"device": torch.device("meta")}  # refuses, as a GPU does, what lies on the CPU
    for train, lazy in ((True, False), (False, False), (True, True)):
        split = lazy_split(memory_split()) if lazy else memory_split()
        expected = epoch_of(split, train=train)
        batches = epoch_of(split, train=train, **arguments)
        assert indices(batches) == indices(expected)
        for batch, one in zip(batches, expected, strict=True):
            assert batch.images.is_meta and batch.labels.is_meta
            assert batch.images.shape == one.images.shape


def test_a_gpu_has_room_for_a_sixteenth_of_its_memory(monkeypatch):
    memory = type("Properties", (), {"total_memory": 1600})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert has_room(torch.device("cuda", 1), 100) and not has_room(torch.device("cuda", 1), 101)
    assert not has_room(torch.device("cpu"), 1) and not has_room(torch.device("mps"), 1)


@pytest.mark.gpu
@pytest.mark.parametrize("border", ["none", "mean", "edge", "reflect", "blur"])
def test_on_a_gpu_the_batches_are_the_cpus(border):
    split, settings = memory_split(), PAD_CROP_FLIP if border == "none" else replace(JITTER, scale_border=border)
    for train in (True, False):
        expected = epoch_of(split, settings, train=train, epoch=2)
        for batch, one in zip(epoch_of(split, settings, train=train, epoch=2, device=GPU), expected, strict=True):
            assert batch.images.is_cuda and batch.labels.is_cuda and torch.equal(batch.index, one.index)
            assert torch.equal(batch.labels.cpu(), one.labels)
            torch.testing.assert_close(batch.images.cpu(), one.images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_random_erasing_is_timms_drawn_for_each_image(mode):
    split = lazy_split(memory_split())
    timm_settings = TimmAugmentation(color_jitter=None, re_prob=0.5, re_mode=mode, re_count=2)
    erasing, whole = (
        images_by_index(epoch_of(split, replace(TIMM, timm=chosen), epoch=2))
        for chosen in (timm_settings, replace(timm_settings, re_prob=0))
    )
    erase = RandomErasing(0.5, mode=mode, max_count=2, device="cpu")
    for index, image in whole.items():
        seeds = [int(word) for word in np.random.SeedSequence((0, 3, 2, index)).generate_state(3)]
        random.seed(seeds[0])
        torch.manual_seed(seeds[2])
        assert torch.equal(erase(image.clone()), erasing[index])
    erased = [index for index in whole if not torch.equal(whole[index], erasing[index])]
    assert 4 < len(erased) < len(whole) - 4


@pytest.mark.parametrize("world_size", [1, 2, 3, 30])
def test_evaluation_sees_every_image_once(world_size):
    ranks = [
        epoch_of(memory_split(), batch_size=4, train=False, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert sorted(itertools.chain.from_iterable(indices(batches) for batches in ranks if batches)) == list(range(23))
    for rank, batches in enumerate(ranks):
        arguments = {"batch_size": 4, "train": False, "rank": rank, "world_size": world_size}
        assert len(make_loader(memory_split(), PAD_CROP_FLIP, CONFIG, **arguments)) == len(batches)


@pytest.mark.parametrize("settings", [DataSettings(workers=0), PAD_CROP_FLIP, TIMM], ids=lambda s: s.augmentation)
@pytest.mark.parametrize("lazy", [False, True])
def test_training_is_the_same_on_any_number_of_processes(settings, lazy):
    split = lazy_split(memory_split()) if lazy else memory_split()
    alone = epoch_of(split, settings, batch_size=6, epoch=3, seed=5)
    for world_size in (2, 3):
        ranks = [
            epoch_of(split, settings, batch_size=6 // world_size, epoch=3, seed=5, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        for whole, parts in zip(alone, zip(*ranks, strict=True), strict=True):
            for expected, parts_of_field in zip(whole, zip(*parts, strict=True), strict=True):
                assert torch.equal(torch.cat(parts_of_field), expected)


def test_an_epoch_is_a_shuffle_without_the_last_incomplete_batch():
    split = memory_split()
    batches = epoch_of(split, batch_size=5)
    assert [len(batch.labels) for batch in batches] == [5, 5, 5, 5]
    assert len(make_loader(split, PAD_CROP_FLIP, CONFIG, batch_size=5, train=True)) == 4
    order = indices(batches)
    assert len(set(order)) == 20 and order != sorted(order)
    for batch in batches:
        assert batch.labels.tolist() == split.labels[batch.index].tolist()


def test_order_and_augmentation_follow_from_seed_and_epoch():
    split = memory_split()
    first = epoch_of(split, epoch=1, seed=2)
    again = epoch_of(split, epoch=1, seed=2)
    assert indices(first) == indices(again)
    assert_same_images(first, again)
    for other in (epoch_of(split, epoch=2, seed=2), epoch_of(split, epoch=1, seed=3)):
        assert indices(first) != indices(other)
        first_images, other_images = images_by_index(first), images_by_index(other)
        assert any(not torch.equal(first_images[i], other_images[i]) for i in first_images.keys() & other_images.keys())


def test_pad_crop_flip_cuts_from_the_padded_image_and_varies():
    split, found = memory_split(), []
    transform = timm.data.create_transform(**CONFIG, is_training=False)
    for index, image in images_by_index(epoch_of(split, batch_size=23)).items():
        padded = np.pad(transform(split.image(index)).numpy(), ((0, 0), (4, 4), (4, 4)))
        places = [
            (top, left, flip)
            for top, left, flip in itertools.product(range(9), range(9), (1, -1))
            if np.array_equal(padded[:, top : top + 12, left : left + 12][:, :, ::flip], image)
        ]
        assert len(places) == 1, f"image {index} is no crop"
        found += places
    tops, lefts, flips = (set(values) for values in zip(*found, strict=True))
    assert len(tops) > 4 and len(lefts) > 4 and len(flips) == 2


@pytest.mark.parametrize("settings", [PAD_CROP_FLIP, JITTER, TIMM], ids=["pad_crop_flip", "jitter", "timm"])
def test_lazy_images_come_as_those_in_memory(settings):
    split = memory_split()
    in_memory, lazy = (epoch_of(s, settings, epoch=1) for s in (split, lazy_split(split)))
    assert indices(in_memory) == indices(lazy)
    assert_same_images(in_memory, lazy)


def test_timms_augmentation_draws_by_image_and_epoch_not_by_worker():
    split = lazy_split(memory_split())
    expected = epoch_of(split, TIMM, epoch=1)
    workers = DataSettings(augmentation="timm", timm=TIMM.timm, workers=2)
    loader = make_loader(split, workers, CONFIG, batch_size=4, train=True)
    next(iter(loader))  # an epoch that breaks off
    loader.set_epoch(1)
    batches = list(loader)
    assert indices(expected) == indices(batches)
    assert_same_images(expected, batches)
    loader.set_epoch(2)
    later, earlier = images_by_index(loader), images_by_index(batches)
    assert not any(torch.equal(later[i], earlier[i]) for i in later.keys() & earlier.keys())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("settings", [PAD_CROP_FLIP, TIMM], ids=lambda s: s.augmentation)
@pytest.mark.parametrize("lazy", [False, True])
def test_an_epoch_begun_in_the_middle_is_the_tail_of_a_whole_one(settings, lazy, workers):
    settings = replace(settings, workers=workers)
    split = lazy_split(memory_split()) if lazy else memory_split()
    for rank, starts in ((0, (1, 3, 5, 0)), (1, (4,))):
        arguments = {"batch_size": 2, "train": True, "seed": 7, "rank": rank, "world_size": 2}
        whole = epoch_of(split, settings, epoch=2, **arguments)
        resumed = make_loader(split, settings, CONFIG, **arguments)
        next(iter(resumed))  # an epoch that breaks off
        for start in starts:
            resumed.set_epoch(2, start)
            assert len(resumed) == len(whole) == 5
            tail = list(resumed)
            assert len(tail) == 5 - start
            for batch, expected in zip(tail, whole[start:], strict=True):
                assert all(torch.equal(*fields) for fields in zip(batch, expected, strict=True))
        resumed.set_epoch(3)
        assert indices(resumed) == indices(epoch_of(split, settings, epoch=3, **arguments))  # from its beginning


def test_a_start_outside_the_epoch_is_refused():
    loader = make_loader(memory_split(), PAD_CROP_FLIP, CONFIG, batch_size=4, train=True)
    for start in (-1, 6):
        with pytest.raises(ValueError, match="no batch of an epoch of 5"):
            loader.set_epoch(0, start)
    evaluation = make_loader(memory_split(), PAD_CROP_FLIP, CONFIG, batch_size=4, train=False)
    evaluation.set_epoch(0, 5)
    assert indices(evaluation) == [20, 21, 22]


LEFT_ALIVE = """
import os, signal, subprocess, sys
from tests.helpers.preprocessing import preprocessing
from tests.helpers.splits import lazy_split, memory_split
from timm_wsms.data import DataSettings, make_loader
settings = DataSettings(augmentation="timm", workers=2)
loader = make_loader(lazy_split(memory_split()), settings, preprocessing(12), batch_size=4, train=True)
batches = iter(loader)
next(batches)  # the workers have started
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
for name in ("TERM", "INT", "USR1"):  # torchrun reaches the workers, too
    subprocess.run(["sh", "-c", f"trap '' {name}; kill -{name} 0"], check=True)
print(len(list(batches)), [worker.pid for worker in loader._workers._loader._iterator._workers])
"""


@pytest.mark.slow
def test_workers_outlive_stop_signals_and_end_with_their_process():
    command = [sys.executable, "-W", "ignore", "-c", LEFT_ALIVE]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, start_new_session=True, cwd=ROOT)
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    count, workers = ended.stdout.split(maxsplit=1)
    assert count == "4" and len(json.loads(workers)) == 2
    assert not any(Path(f"/proc/{worker}").exists() for worker in json.loads(workers))


def test_each_image_has_draws_of_its_own():
    pixels = np.repeat(memory_split(1).pixels, 40, axis=0)
    split = Split("train", np.zeros(40, np.int64), ["a"], pixels=pixels)
    full = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "color_jitter": None}
    flips = DataSettings(augmentation="timm", timm=TimmAugmentation(**full), workers=0)
    images = torch.cat([batch.images for batch in epoch_of(split, flips)])
    plain = epoch_of(split, DataSettings(), train=False)[0].images[0]
    flipped = sum(torch.equal(image, plain.flip(-1)) for image in images)
    assert sum(torch.equal(image, plain) for image in images) == 40 - flipped and 8 <= flipped <= 32
    images = torch.cat([batch.images for batch in epoch_of(split, TIMM)])
    assert len({image.numpy().tobytes() for image in images}) >= 38


@pytest.mark.parametrize("workers", [0, 1])
def test_augmentation_leaves_the_trainings_random_numbers_alone(workers):
    settings = DataSettings(augmentation="timm", timm=TIMM.timm, workers=workers)
    draws = []
    for run in range(2):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        if run:
            assert epoch_of(lazy_split(memory_split()), settings)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_stops_the_epoch_with_one_clear_line(workers):
    split = lazy_split(memory_split(), bad=(2,))
    for train in (True, False):
        with pytest.raises(
            UserError, match=r"Row 2 of split 'train' cannot be decoded .*data\.on_bad_image=skip"
        ) as error:
            epoch_of(split, DataSettings(workers=workers), batch_size=23, train=train)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_left_out_and_counted_once(workers):
    settings = DataSettings(workers=workers, on_bad_image="skip")
    loader = make_loader(lazy_split(memory_split(), bad=(2, 17)), settings, CONFIG, batch_size=4, train=False)
    assert loader.skipped == 0
    for _ in range(2):
        batches = list(loader)
        assert indices(batches) == [i for i in range(23) if i not in (2, 17)]
        assert torch.equal(torch.cat([batch.labels for batch in batches]), loader._labels[indices(batches)])
        assert loader.skipped == 2 and loader.left_out == {2, 17}
    complete = make_loader(memory_split(), settings, CONFIG, batch_size=4, train=False)
    assert_same_images(batches, [batch for batch in drop(complete, (2, 17))])


def drop(batches, bad):
    for index, images, labels in batches:
        kept = torch.tensor([int(i) not in bad for i in index])
        yield type("Batch", (), {"index": index[kept], "images": images[kept], "labels": labels[kept]})


def test_a_batch_of_bad_images_only_ends_training_but_not_evaluation():
    split = lazy_split(memory_split(4), bad=(0, 1))
    settings = DataSettings(workers=0, on_bad_image="skip")
    with pytest.raises(UserError, match="no image of a whole batch"):
        epoch_of(split, settings, batch_size=1)
    assert indices(epoch_of(split, settings, batch_size=2, train=False)) == [2, 3]


@pytest.mark.parametrize("workers", [0, 1])
def test_skipping_keeps_each_image_with_its_own_augmentation(workers):
    settings = DataSettings(augmentation="pad_crop_flip", workers=workers, on_bad_image="skip")
    split = memory_split()
    batches = epoch_of(lazy_split(split, bad=(2, 17)), settings, batch_size=23)
    assert_same_images(batches, drop(epoch_of(split, settings, batch_size=23), (2, 17)))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [({"batch_size": 24}, "23 images, fewer than one batch of 24"), ({"batch_size": 0}, "batch_size is 0")],
)
def test_a_batch_size_that_cannot_be_used_is_named(arguments, part):
    with pytest.raises(UserError, match=part):
        make_loader(memory_split(), PAD_CROP_FLIP, CONFIG, train=True, **arguments)
    with pytest.raises(UserError, match="fewer than one batch of 24"):
        make_loader(memory_split(), PAD_CROP_FLIP, CONFIG, train=True, batch_size=8, world_size=3)


def test_the_splits_pixels_are_not_touched():
    split = memory_split()
    before = split.pixels.copy()
    epoch_of(split)
    epoch_of(split, TIMM)
    np.testing.assert_array_equal(split.pixels, before)
    assert fits_in_memory(1000, 64, 64) and not fits_in_memory(1, 65, 8)
