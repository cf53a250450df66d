"""Sources written to disk as a user has them, and every mistake that a user can make with one."""

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.helpers.streams import write_shards
from timm_wsms.data import DataSettings, load_data, load_split, load_splits
from timm_wsms.data import split as split_module
from timm_wsms.data.decode import BadImageError
from timm_wsms.errors import UserError

NAMES = ["cat", "dog"]
LABELS = {"train": [0, 1, 1, 0, 1, 0], "test": [1, 0, 0, 1]}
CLASS_LABEL = datasets.ClassLabel(names=NAMES)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def noise(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def write_parquet(folder: Path, columns: dict, features: dict, split: str = "train") -> str:
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(folder / f"{split}.parquet")
    return str(folder)


def write_splits(folder: Path, pixels: dict[str, np.ndarray], label=CLASS_LABEL, labels=LABELS) -> str:
    for split, images in pixels.items():
        columns = {"img": [Image.fromarray(image) for image in images], "label": labels[split]}
        write_parquet(folder, columns, {"img": datasets.Image(), "label": label}, split)
    return str(folder)


def write_image_folder(folder: Path, pixels: dict[str, list[np.ndarray]]) -> str:
    for split, images in pixels.items():
        for number, (image, label) in enumerate(zip(images, LABELS[split], strict=True)):
            file = folder / split / NAMES[label] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return str(folder)


def message_of(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("shape", [(9, 7, 3), (9, 7)])
def test_parquet_with_small_images_is_kept_decoded(tmp_path, shape):
    pixels = {"train": noise(6, *shape), "test": noise(4, *shape)}
    for split, name in zip(load_splits(DataSettings(write_splits(tmp_path / "d", pixels)), 0), LABELS, strict=True):
        expected = pixels[name] if len(shape) == 3 else np.stack([pixels[name]] * 3, axis=-1)
        np.testing.assert_array_equal(split.pixels, expected)
        np.testing.assert_array_equal(split.labels, LABELS[name])
        assert split.labels.dtype == np.int64 and split.class_names == NAMES and split.skipped == 0
        assert split.object_sizes is None and split.name == name
        np.testing.assert_array_equal(split.image(3), expected[3])


def test_image_folder_with_images_of_any_size_stays_lazy(tmp_path):
    pixels = {"train": [noise(1, 9 + i, 7, 3)[0] for i in range(6)], "test": [noise(1, 8, 70, 3)[0]] * 4}
    train, test = load_splits(DataSettings(write_image_folder(tmp_path / "d", pixels)), 0)
    assert train.pixels is None and test.pixels is None and train.class_names == NAMES
    np.testing.assert_array_equal(train.labels, sorted(LABELS["train"]))  # the folders' order
    by_label = [pixels["train"][i] for i in np.argsort(LABELS["train"], kind="stable")]
    for index, expected in enumerate(by_label):
        np.testing.assert_array_equal(train.image(index), expected)
    np.testing.assert_array_equal(test.image(0), pixels["test"][0])


def test_images_that_would_fill_the_memory_stay_lazy(tmp_path, monkeypatch):
    source = write_splits(tmp_path / "d", {"train": noise(6, 9, 7, 3), "test": noise(4, 9, 7, 3)})
    monkeypatch.setattr(split_module, "MEMORY_LIMIT", 5 * 9 * 7 * 3)
    train, test = load_splits(DataSettings(source), 0)
    assert train.pixels is None and test.pixels is not None
    np.testing.assert_array_equal(train.image(5), noise(6, 9, 7, 3)[5])


def test_sixteen_bit_gray_keeps_its_shades(tmp_path):
    shades = np.array([[0, 257, 25700, 65535]], np.uint16)
    write_parquet(
        tmp_path / "d",
        {"img": [Image.fromarray(shades)], "label": [0]},
        {"img": datasets.Image(), "label": CLASS_LABEL},
    )
    train, _ = load_splits(DataSettings(str(tmp_path / "d"), test_split="train"), 0)
    np.testing.assert_array_equal(train.pixels[0, 0, :, 0], [0, 1, 100, 255])


def test_integer_labels_are_their_own_names(tmp_path):
    pixels = {"train": noise(6, 4, 4, 3), "test": noise(4, 4, 4, 3)}
    source = write_splits(tmp_path / "d", pixels, datasets.Value("int32"), {**LABELS, "test": [0, 3, 1, 1]})
    train, test = load_splits(DataSettings(source), 0)
    assert train.class_names == test.class_names == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(test.labels, [0, 3, 1, 1])


def test_limits_take_the_first_images(tmp_path):
    pixels = {"train": noise(6, 9, 7, 3), "test": noise(4, 9, 7, 3)}
    source = write_splits(tmp_path / "d", pixels)
    for split, name, n in zip(
        load_splits(DataSettings(source, train_limit=5, test_limit=9), 0), LABELS, (5, 4), strict=True
    ):
        np.testing.assert_array_equal(split.pixels, pixels[name][:n])
        np.testing.assert_array_equal(split.labels, LABELS[name][:n])
    digits, _ = load_splits(DataSettings(train_limit=10), 0)
    assert len(digits) == len(digits.pixels) == len(digits.object_sizes) == 10


def test_one_split_for_both_is_decoded_once(tmp_path, monkeypatch):
    source = write_splits(tmp_path / "d", {"train": noise(6, 9, 7, 3), "test": noise(4, 9, 7, 3)})
    decoded = []
    image = split_module.Split.image
    monkeypatch.setattr(split_module.Split, "image", lambda split, row: decoded.append(row) or image(split, row))
    both = load_splits(DataSettings(source, train_split="test"), 0)
    assert decoded == [0, 1, 2, 3]
    for split in both:
        np.testing.assert_array_equal(split.pixels, noise(4, 9, 7, 3))
    train, test = load_splits(DataSettings(source, train_split="test", train_limit=3), 0)
    assert (len(train), len(test)) == (3, 4)


def test_digits_know_their_sizes():
    train, test = load_splits(DataSettings("digits"), 0)
    assert (len(train), len(test), train.class_names) == (1437, 2520, [str(i) for i in range(10)])
    assert test.object_sizes is not None and list(test.object_sizes[:8]) == [8, 12, 16, 20, 24, 28, 32, 8]
    assert not np.array_equal(load_splits(DataSettings("digits"), 1)[0].labels, train.labels)


def test_columns_can_be_named(tmp_path):
    pictures = {"img": [Image.new("L", (4, 4))] * 2, "photo": [Image.new("L", (4, 4), "white")] * 2}
    features = {"img": datasets.Image(), "photo": datasets.Image(), "fine": CLASS_LABEL, "coarse": CLASS_LABEL}
    source = write_parquet(tmp_path / "d", {**pictures, "fine": [0, 1], "coarse": [1, 0]}, features)
    settings = DataSettings(source, test_split="train", image_column="photo", label_column="coarse")
    train, _ = load_splits(settings, 0)
    assert (train.pixels == 255).all() and list(train.labels) == [1, 0]


def make_nothing(folder: Path) -> None:
    pass


def make_empty(folder: Path) -> None:
    folder.mkdir()


def make_text(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("no images here")


def make_broken_parquet(folder: Path) -> None:
    folder.mkdir()
    (folder / "train.parquet").write_bytes(b"nonsense")


def make_file(folder: Path) -> None:
    folder.write_text("a file")


def make_unlabelled(folder: Path) -> None:
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    Image.new("RGB", (4, 4)).save(folder / "b.png")


def make_hidden_labels(folder: Path) -> None:
    write_splits(
        folder, {"train": noise(6, 4, 4, 3), "test": noise(4, 4, 4, 3)}, labels={**LABELS, "test": [0, 1, -1, 1]}
    )


def make_missing_label(folder: Path) -> None:
    labels = {"train": [0, None, 1, 1, 0, 0], "test": LABELS["test"]}
    write_splits(folder, {"train": noise(6, 4, 4, 3), "test": noise(4, 4, 4, 3)}, datasets.Value("int64"), labels)


def make_label_of_no_class(folder: Path) -> None:
    write_shards(folder, wrong=(3, 2))


def make_validation(folder: Path) -> None:
    labels = {"train": LABELS["train"], "validation": LABELS["test"]}
    write_splits(folder, {"train": noise(6, 4, 4, 3), "validation": noise(4, 4, 4, 3)}, labels=labels)


def make_only_train(folder: Path) -> None:
    write_splits(folder, {"train": noise(6, 4, 4, 3)})


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (make_nothing, ["there is no such folder", "fix the path"]),
        (make_empty, ["there are no images", "Put an image folder"]),
        (make_text, ["there are no images", "files that Pillow does not read (.txt): notes.txt", "data.source"]),
        (make_broken_parquet, ["no images can be read from this folder", "Parquet magic bytes"]),
        (make_file, ["is a file", "name the folder"]),
        (make_unlabelled, ["lie in no class folder (a.png, b.png)", "split/class/image"]),
        (make_hidden_labels, ["Row 2 of split 'test' has no label in 'label'"]),
        (make_missing_label, ["Row 1 of split 'train' has no label in 'label'"]),
        (make_label_of_no_class, ["Row 3 of split 'train' has label 2 in 'label'", "there are 2 classes", "fix"]),
        (make_only_train, ["no split 'test'", "data.holdout=0.2", "data.test_split among: train"]),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_clear_line(tmp_path, make, parts):
    make(tmp_path / "d")
    test_split = "train" if make in (make_text, make_unlabelled) else "test"
    with pytest.raises(UserError) as error:
        load_splits(DataSettings(str(tmp_path / "d"), test_split=test_split), 0)
    assert all(part in message_of(error) for part in parts), message_of(error)


def test_the_setting_names_another_split(tmp_path):
    make_validation(tmp_path / "d")
    _, test = load_splits(DataSettings(str(tmp_path / "d"), test_split="validation"), 0)
    np.testing.assert_array_equal(test.pixels, noise(4, 4, 4, 3))


@pytest.mark.parametrize(
    ("settings", "seed", "part"),
    [
        ({"train_limit": 0}, 0, "data.train_limit"),
        ({"workers": -1}, 0, "data.workers"),
        ({"test_split": "other"}, 0, "among: test, train"),
        ({}, -1, "seed is -1"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings, seed, part):
    with pytest.raises(UserError, match=part):
        load_splits(DataSettings(**settings), seed)


def test_a_hub_name_and_its_configuration_reach_datasets(monkeypatch, tmp_path):
    asked = []
    local = datasets.load_dataset(write_splits(tmp_path / "d", {"train": noise(6, 4, 4, 3), "test": noise(4, 4, 4, 3)}))
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **_: asked.append(arguments) or local)
    train, _ = load_splits(DataSettings("owner/name", config="large"), 0)
    assert asked == [("owner/name", "large")] and len(train) == 6


def write_bad(folder: Path, shape: tuple[int, ...], content: bytes = b"no image") -> str:
    """Row 2 of the training split, dog/2.png, cannot be decoded; image folders put cats (0, 3, 5) first."""
    images = {"train": list(noise(6, *shape)), "test": list(noise(4, *shape))}
    source = write_image_folder(folder, images)
    (folder / "train" / "dog" / "2.png").write_bytes(content)
    return source


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 80, 3)])
def test_what_is_no_image_stops_before_training(tmp_path, shape):
    with pytest.raises(UserError) as error:
        load_splits(DataSettings(write_bad(tmp_path / "d", shape)), 0)
    for part in ("Row 4 of split 'train'", "dog/2.png", "cannot be decoded", "data.on_bad_image=skip"):
        assert part in message_of(error)


def test_bad_images_are_left_out_and_counted(tmp_path):
    train, test = load_splits(DataSettings(write_bad(tmp_path / "d", (8, 8, 3)), on_bad_image="skip"), 0)
    kept = [0, 3, 5, 1, 4]
    np.testing.assert_array_equal(train.pixels, noise(6, 8, 8, 3)[kept])
    np.testing.assert_array_equal(train.labels, np.array(LABELS["train"])[kept])
    assert (len(train), train.skipped, len(test), test.skipped) == (5, 1, 4, 0)


def test_a_damaged_large_image_is_named_when_it_is_decoded(tmp_path):
    source = write_bad(tmp_path / "d", (80, 80, 3))
    file = tmp_path / "d" / "train" / "dog" / "2.png"
    file.write_bytes((tmp_path / "d" / "train" / "dog" / "1.png").read_bytes()[:3000])  # the head is whole
    train, _ = load_splits(DataSettings(source), 0)
    with pytest.raises(BadImageError, match=r"Row 4 of split 'train' .*2\.png.* cannot be decoded"):
        train.image(4)
    np.testing.assert_array_equal(train.image(3), noise(6, 80, 80, 3)[1])


def test_not_one_good_image_is_an_error(tmp_path):
    source = write_image_folder(tmp_path / "d", {"train": list(noise(6, 8, 8, 3)), "test": list(noise(4, 8, 8, 3))})
    for file in (tmp_path / "d" / "test").glob("*/*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(UserError, match="None of the 4 images of split 'test'"):
        load_splits(DataSettings(source, on_bad_image="skip"), 0)


def test_splits_whose_files_name_the_classes_in_another_order_are_matched_by_name(tmp_path):
    folder = tmp_path / "d"
    for split, names in (("train", ["cat", "dog", "fox"]), ("test", ["fox", "cat", "dog"])):
        columns = {"img": [Image.fromarray(image) for image in noise(3, 4, 4, 3)], "label": [0, 1, 2]}
        write_parquet(folder, columns, {"img": datasets.Image(), "label": datasets.ClassLabel(names=names)}, split)
    train, test = load_splits(DataSettings(str(folder)), 0)
    assert train.class_names == test.class_names == ["cat", "dog", "fox"]
    assert train.labels.tolist() == [0, 1, 2] and test.labels.tolist() == [2, 0, 1]
    assert load_split(DataSettings(str(folder))).class_names == ["fox", "cat", "dog"]  # nothing to be matched with
    streams = load_data(DataSettings(str(folder), streaming=True, train_size=3, test_size=3), 0)
    assert [[row.label for row in stream.read(0)] for stream in streams] == [[0, 1, 2], [2, 0, 1]]
    assert streams[1].class_names == ["cat", "dog", "fox"]


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_whose_classes_cannot_be_matched_are_refused(tmp_path, streaming):
    write_named(tmp_path / "d", train=["cat", "dog"], test=["wolf", "lynx"])
    with pytest.raises(UserError, match=r"cannot be matched: 'cat' … and 'wolf' …"):
        load_data(DataSettings(str(tmp_path / "d"), streaming=streaming, train_size=2, test_size=2), 0)


@pytest.mark.parametrize("streaming", [False, True])
def test_accents_in_either_form_are_one_class_of_both_splits(tmp_path, streaming):
    typed, stored = "caf\u00e9", "cafe\u0301"
    write_named(tmp_path / "d", train=["tea", typed], test=[stored, "tea"])
    settings = DataSettings(str(tmp_path / "d"), streaming=streaming, train_size=2, test_size=2)
    train, test = load_data(settings, 0)
    assert train.class_names == test.class_names == ["tea", typed]
    labels = [row.label for row in test.read(0)] if streaming else test.labels.tolist()
    assert labels == [1, 0]


def write_named(folder: Path, **names: list[str]) -> None:
    """A file per split with an image of each class."""
    for split, own in names.items():
        columns = {"img": [Image.fromarray(image) for image in noise(len(own), 4, 4, 3)], "label": [*range(len(own))]}
        write_parquet(folder, columns, {"img": datasets.Image(), "label": datasets.ClassLabel(names=own)}, split)


def test_files_of_one_split_with_classes_in_another_order_are_refused(tmp_path):
    for number, names in enumerate((["cat", "dog"], ["dog", "cat"])):
        columns = {"img": [Image.fromarray(image) for image in noise(2, 4, 4, 3)], "label": [0, 1]}
        features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=names)}
        write_parquet(tmp_path / "d", columns, features, f"train-{number}")
    with pytest.raises(UserError, match=r"train-1\.parquet has other classes .* of split 'train'"):
        load_splits(DataSettings(str(tmp_path / "d"), test_split="train"), 0)


@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct"])
@pytest.mark.parametrize("place", ["d", "[2024] photos"])
def test_plain_parquet_of_files_and_words_is_read(tmp_path, kind, place):
    (tmp_path / place).mkdir()
    words = {"train": ["dog", "cat", "dog", "ant"], "test": ["cat", "dog"]}
    for split, labels in words.items():
        files = []
        for image in noise(len(labels), 4, 4, 3):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "png")
            files.append(file.getvalue())
        column = pa.array(files, pa.binary() if kind == "binary" else pa.large_binary())
        if kind == "struct":
            column = pa.array([{"bytes": file, "path": "x.png"} for file in files])
        pq.write_table(pa.table({"picture": column, "kind": labels}), tmp_path / place / f"{split}.parquet")
    train, test = load_splits(DataSettings(str(tmp_path / place)), 0)
    assert train.class_names == ["ant", "cat", "dog"]
    assert train.labels.tolist() == [2, 1, 2, 0] and test.labels.tolist() == [1, 2]
    np.testing.assert_array_equal(train.pixels, noise(4, 4, 4, 3))
    with pytest.raises(UserError, match=r"holds no class labels; set data\.num_classes .* data\.streaming"):
        load_data(DataSettings(str(tmp_path / place), streaming=True, train_size=4, test_size=2), 0)
