"""Streams against the same files read whole, and what can be wrong with them."""

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.helpers.streams import contents, places, write_shards
from timm_wsms.data import DataSettings, Stream, load_data
from timm_wsms.errors import UserError

TRAIN, TEST = (9, 7, 11, 3, 12, 8), (4, 1, 5)


def streams(folder, **settings) -> tuple[Stream, Stream]:
    return load_data(DataSettings(str(folder), streaming=True, **settings), 0)  # type: ignore[return-value]


def rows_of(stream: Stream) -> list:
    return [row for shard in range(stream.shards) for row in stream.read(shard)]


def test_a_stream_has_what_the_files_hold(tmp_path):
    for stream, sizes in zip(streams(write_shards(tmp_path / "d")), (TRAIN, TEST), strict=True):
        pixels, labels = contents(stream.name, sum(sizes))
        rows, place = rows_of(stream), places(sizes)
        assert [place[row.index] for row in rows] == list(range(len(labels)))
        assert [row.label for row in rows] == labels
        for row in rows:
            np.testing.assert_array_equal(stream.image(row.index, row.image), pixels[place[row.index]])
        assert (len(stream), stream.shards, stream.class_names) == (len(labels), len(sizes), ["cat", "dog"])
        assert [row.index for row in stream.read(1)] == [row.index for row in rows if row.index // 10**9 == 1]


def test_a_limit_takes_the_first_images(tmp_path):
    train, test = streams(write_shards(tmp_path / "d"), train_limit=18, test_limit=99)
    assert [places(TRAIN)[row.index] for row in rows_of(train)] == list(range(18))
    assert (len(train), len(test), len(rows_of(test))) == (18, 10, 10)
    # It also says how many there are, where nothing else does.
    assert len(streams(write_shards(tmp_path / "e", card=False), train_limit=18, test_limit=5)[0]) == 18


def test_the_settings_say_how_many_images_and_classes_there_are(tmp_path):
    source = write_shards(tmp_path / "d", card=False, label=datasets.Value("int64"))
    with pytest.raises(UserError, match=r"holds no class labels; set data\.num_classes"):
        streams(source)
    with pytest.raises(UserError, match=r"how many images split 'train' has; set data\.train_size"):
        streams(source, num_classes=2)
    with pytest.raises(UserError, match=r"how many images split 'test' has; set data\.test_size"):
        streams(source, num_classes=2, train_size=50)
    train, test = streams(source, num_classes=2, train_size=50, test_size=10)
    assert (len(train), len(test), train.class_names) == (50, 10, ["0", "1"])
    with pytest.raises(UserError, match=r"data\.lanes is 0"):
        streams(source, lanes=0)


def test_an_image_folder_can_be_streamed(tmp_path):
    for name in ("train/cat/0.png", "train/dog/1.png", "test/dog/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (int(tmp_path.joinpath(name).stem), 0, 0)).save(tmp_path / name)
    train, _ = streams(tmp_path, train_size=2, test_size=1)
    rows = rows_of(train)
    assert [(row.index, row.label) for row in rows] == [(0, 0), (1, 1)]
    assert train.image(1, rows[1].image).getpixel((0, 0)) == (1, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"wrong": (17, 2)}, r"Row 1 of split 'train', shard 2, has label 2 in 'label', but there are 2 classes"),
        ({"wrong": (17, -1)}, r"Row 1 of split 'train', shard 2, has no label in 'label'"),
        ({"wrong": (17, None)}, r"Row 1 of split 'train', shard 2, has no label in 'label'"),
        ({"train": (0,)}, r"Split 'train' is empty"),
    ],
)
def test_what_is_wrong_with_a_source_is_one_clear_line(tmp_path, arguments, says):
    source = write_shards(tmp_path / "d", **arguments)
    with pytest.raises(UserError, match=says) as error:
        rows_of(streams(source)[0])
    assert len(str(error.value).splitlines()) == 1


def test_a_file_that_breaks_off_is_one_clear_line(tmp_path):
    source = write_shards(tmp_path / "d")
    train, _ = streams(source)
    assert len(list(train.read(0))) == 9
    (source / "train-00003-of-00006.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"Split 'train' cannot be read any further; .*--resume auto") as error:
        list(train.read(3))
    assert len(str(error.value).splitlines()) == 1


def test_the_embedded_digits_are_no_stream():
    train, _ = load_data(DataSettings("digits", streaming=True), 0)
    assert not isinstance(train, Stream)
