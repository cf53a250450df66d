"""Image folders as users have them: every file of the right split and class, or named."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from timm_wsms.data import DataSettings, load_data, load_split, load_splits, summary
from timm_wsms.data.image_folder import is_image_folder, read_image_folder
from timm_wsms.errors import UserError


def write(folder: Path, *files: str, size: tuple[int, int] = (8, 8)) -> Path:
    """Image files whose shade is their place among the files."""
    for shade, name in enumerate(files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (shade,) * 3).save(folder / name, None if Path(name).suffix else "png")
    return folder


def listed(folder: Path, **settings) -> dict[str, dict[str, str]]:
    """Split → file → class."""
    found = read_image_folder(folder, DataSettings(str(folder), **settings))
    return {
        name: {str(Path(file).relative_to(folder)): of for file, of in zip(split.files, split.classes, strict=True)}
        for name, split in found.splits.items()
    }


def passed_over(folder: Path) -> dict[str, list[str]]:
    found = read_image_folder(folder, DataSettings(str(folder)))
    return {why: files for split in found.splits.values() for why, files in split.passed_over.items()} | found.beside


def test_where_folders_name_splits_they_alone_do(tmp_path):
    classes = ["crash test dummy", "test_tube", "train", "validation shots"]
    write(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "test") for name in classes))
    for split, files in listed(tmp_path).items():
        assert files == {f"{split}/{name}/1.png": name for name in classes}
    train, test = load_splits(DataSettings(str(tmp_path)), 0)
    assert train.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3] and test.pixels[:, 0, 0, 0].tolist() == [4, 5, 6, 7]
    assert train.labels.tolist() == test.labels.tolist() == [0, 1, 2, 3] and train.class_names == classes


def test_a_class_called_train_beside_others_is_a_class(tmp_path):
    write(tmp_path, "train/1.png", "car/1.png", "plane/1.png")
    assert listed(tmp_path) == {"train": {"car/1.png": "car", "plane/1.png": "plane", "train/1.png": "train"}}


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Test"),
        ("training", "testing"),
        ("part1", "part2"),
        *(("train", name) for name in ("validation", "valid", "val", "dev", "eval", "testing", "Test")),
    ],
)
def test_splits_have_any_usual_name_or_one_that_the_settings_name(tmp_path, names):
    write(tmp_path, f"{names[0]}/cat/1.png", f"{names[0]}/dog/1.png", f"{names[1]}/cat/1.png")
    chosen = {"train_split": "part1", "test_split": "part2"} if names[0] == "part1" else {}
    train, test = load_splits(DataSettings(str(tmp_path), **chosen), 0)
    assert (train.name, test.name) == names and (len(train), len(test)) == (2, 1)


def test_links_to_folders_and_files_are_followed(tmp_path):
    store = write(tmp_path / "store", "a/1.png", "b/2.png", "c/3.png", "d/4.png", "e.png")
    for split, first, second in (("train", "a", "b"), ("test", "c", "d")):
        (tmp_path / "data" / split).mkdir(parents=True)
        for name, target in (("cat", first), ("dog", second)):
            (tmp_path / "data" / split / name).symlink_to(store / target, target_is_directory=True)
    (store / "a" / "link.png").symlink_to(store / "e.png")
    train, test = load_splits(DataSettings(str(tmp_path / "data")), 0)
    assert train.labels.tolist() == [0, 0, 1] and train.pixels[:, 0, 0, 0].tolist() == [0, 4, 1]
    assert test.labels.tolist() == [0, 1] and test.pixels[:, 0, 0, 0].tolist() == [2, 3]
    (tmp_path / "link").symlink_to(tmp_path / "data", target_is_directory=True)
    assert len(load_split(DataSettings(str(tmp_path / "link")))) == 2


@pytest.mark.parametrize("target", ["..", "../..", "."])
def test_a_link_that_leads_back_is_refused(tmp_path, target):
    write(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/cat/1.png")
    (tmp_path / "train" / "cat" / "again").symlink_to(target)
    with pytest.raises(UserError, match="train/cat/again is a link that leads back to"):
        listed(tmp_path)


def test_links_that_lead_nowhere_are_named(tmp_path):
    write(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "dog" / "2.png").symlink_to("gone.png")
    (tmp_path / "fox").symlink_to("gone")
    (tmp_path / "dog" / "self.png").symlink_to("self.png")
    (why,) = passed_over(tmp_path).items()
    assert why[0] == "links that lead nowhere" and sorted(why[1]) == ["dog/2.png", "dog/self.png", "fox"]


@pytest.mark.parametrize("other", ["train/dog/1.png", "test/cat/1.png", "test/cat/other.png"])
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_in_two_splits_or_twice_in_one_is_an_error(tmp_path, link, other):
    write(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/dog/1.png")
    (tmp_path / other).parent.mkdir(exist_ok=True)
    link(tmp_path / "train/cat/1.png", tmp_path / other)
    with pytest.raises(UserError, match=rf"(train/cat/1.png|{other}) and .* are one and the same file"):
        listed(tmp_path)


def test_a_linked_class_beside_the_class_is_an_error(tmp_path):
    write(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/cat/1.png")
    (tmp_path / "train" / "kitty").symlink_to("cat")
    with pytest.raises(UserError, match=r"train/cat/1\.png and train/kitty/1\.png"):
        listed(tmp_path)


def test_the_first_level_is_the_class_and_said_to_be(tmp_path):
    write(
        tmp_path,
        *(f"{s}/{name}/{size}/1.png" for s in ("train", "test") for name in ("animal", "vehicle") for size in "bs"),
    )
    train, _ = load_splits(DataSettings(str(tmp_path)), 0)
    assert train.class_names == ["animal", "vehicle"] and train.labels.tolist() == [0, 0, 1, 1]
    assert any("the first level of folders is the class" in remark for remark in train.found["remarks"])


def test_one_deeper_image_belongs_to_the_first_level_and_is_named(tmp_path):
    write(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "test") for name in ("cat", "dog")))
    write(tmp_path, "train/cat/old/2.png")
    train, _ = load_splits(DataSettings(str(tmp_path)), 0)
    assert train.class_names == ["cat", "dog"] and train.labels.tolist() == [0, 0, 1]
    (remark,) = train.found["remarks"]
    assert remark == ("split train: the first level of folders is the class; images in cat/old belong to that class")


@pytest.mark.parametrize("name", ["cat/a.avif", "cat/b", ".5/c.png", "cat/d.webp"])
def test_pixels_of_such_files(tmp_path, name):
    write(tmp_path, "dog/1.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    image = Image.new("RGB", (16, 16), (200, 100, 50))
    image.save(tmp_path / name, None if Path(name).suffix else "png")
    split = load_split(DataSettings(str(tmp_path), test_split="train"))
    (row,) = np.flatnonzero(split.labels == split.class_names.index(name.partition("/")[0]))
    found = np.asarray(split.image(row)).reshape(-1, 3).astype(int)
    assert found.shape == (256, 3) and np.abs(found - [200, 100, 50]).max() <= 4


def test_what_pillow_reads_is_read_whatever_its_name(tmp_path):
    write(tmp_path, "cat/a.avif", "cat/b", "cat/c.PNG", ".5/1.png", "dog/.hidden.png", "dog/x.tif")
    Image.new("RGB", (8, 8)).save(tmp_path / "dog" / "really.txt", "jpeg")
    (tmp_path / "dog" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "dog" / "._1.png").write_bytes(b"Mac OS X")
    (tmp_path / "dog" / "notes.txt").write_text("not one")
    (tmp_path / "dog" / "drawing.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    write(tmp_path, ".ipynb_checkpoints/1.png")
    (tmp_path / "empty").mkdir()
    (found,) = listed(tmp_path).values()
    assert found == {
        ".5/1.png": ".5",
        "cat/a.avif": "cat",
        "cat/b": "cat",
        "cat/c.PNG": "cat",
        "dog/.hidden.png": "dog",
        "dog/really.txt": "dog",
        "dog/x.tif": "dog",
    }
    assert passed_over(tmp_path) == {
        "files that Pillow does not read (.heic)": ["dog/phone.heic"],
        "files that Pillow does not read (.png)": ["dog/._1.png"],
        "files that Pillow does not read (.txt)": ["dog/notes.txt"],
        "EPS files, which Pillow does not decode": ["dog/drawing.eps"],
        "folders that belong to programs": [".ipynb_checkpoints"],
        "folders without images": ["empty"],
    }


def test_stray_images_are_named(tmp_path):
    write(
        tmp_path,
        "train/cat/1.png",
        "train/dog/1.png",
        "train/stray.png",
        "test/cat/1.png",
        "preview.png",
        "old/x/1.png",
    )
    assert passed_over(tmp_path) == {
        "in no class folder": ["train/stray.png"],
        "images next to the split folders": ["preview.png"],
        "folders next to the split folders": ["old (1 images)"],
    }


@pytest.mark.parametrize("name", ["[2024] photos", "a*b", "what?", "{x}", "a,b", "100%", "ünïcödé", "with space"])
def test_any_name_of_a_folder_is_read(tmp_path, name):
    write(tmp_path / name, f"train/{name}/1.png", "train/dog/1.png", "test/dog/1.png")
    train, _ = load_splits(DataSettings(str(tmp_path / name)), 0)
    assert sorted(train.class_names) == sorted([name, "dog"]) and len(train) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.png", "b.png"], r"lie in no class folder \(a.png, b.png\).*split/class/image"),
        (["photos/train/a/1.png", "photos/test/a/1.png"], "holds one folder, which holds the splits; name .*photos"),
        (["cat/train/1.png", "cat/test/1.png", "dog/train/1.png", "dog/test/2.png"], "splits are below the classes"),
        (
            ["train/cat/1.png", "train/dog/1.png", "lions/1.png"],
            "'train' names a split .* but lions next to it.*test_split",
        ),
        (
            ["train/1.png", "val/1.png"],
            "train, val are names of splits, but the images in them lie in no class folders",
        ),
        (["train/1.png", "test/1.png", "dev/1.png"], "dev, test, train are names of splits"),
        (["cat/1.png", "cat/2.png"], "single class, 'cat'"),
        (["train/cat/1.png", "test/cat/2.png"], "single class, 'cat'"),
        (["train/cat/1.png", "train/dog/1.png"], r"no split 'test' .* data\.holdout=0\.2"),
    ],
)
def test_a_folder_that_cannot_be_meant_is_told_in_one_line(tmp_path, files, message):
    write(tmp_path, *files)
    chosen = {"test_split": "train"} if "single" in message and "test/cat/2.png" not in files else {}
    with pytest.raises(UserError, match=message) as error:
        load_splits(DataSettings(str(tmp_path), **chosen), 0)
    assert len(str(error.value).splitlines()) == 1


def test_classes_may_have_the_name_of_a_split_among_others(tmp_path):
    write(tmp_path, "train/1.png", "train/2.png", "car/1.png", "car/2.png")  # vehicles
    assert load_split(DataSettings(str(tmp_path), test_split="train")).class_names == ["car", "train"]


def test_an_empty_folder_with_the_name_of_a_split_is_told(tmp_path):
    write(tmp_path, "train/cat/1.png", "train/dog/1.png", "train/cat/2.png", "train/dog/2.png")
    (tmp_path / "test").mkdir()
    settings = DataSettings(str(tmp_path), holdout="auto")
    train, test = load_splits(settings, 0)
    told = "\n".join(summary.lines(summary.describe({"train": train, "test": test}, settings)))
    assert "there are no images in folder 'test', which has the name of a split" in told


def test_a_single_class_can_be_evaluated(tmp_path):
    write(tmp_path, "test/cat/1.png", "test/cat/2.png")
    assert load_split(DataSettings(str(tmp_path))).class_names == ["cat"]


def test_labels_in_a_table_beside_the_images(tmp_path):
    write(tmp_path, "train/a.png", "train/b.png", "train/c.png", "test/z.png")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label,weight\na.png,dog,1\nb.png,cat,2\nc.png,,3\n")
    (tmp_path / "test" / "metadata.jsonl").write_text('{"file_name": "z.png", "label": "dog"}\n')
    train, test = load_splits(DataSettings(str(tmp_path)), 0)
    assert train.class_names == ["cat", "dog"] and train.labels.tolist() == [1, 0] and test.labels.tolist() == [1]
    assert train.pixels[:, 0, 0, 0].tolist() == [0, 1]
    assert train.found["passed_over"] == {"without label in the metadata": ["train/c.png"]}


def test_numbers_in_a_table_are_in_their_order(tmp_path):
    write(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "metadata.csv").write_text("file_name,target\na.png,10\nb.png,9\nc.png,10\n")
    split = load_split(DataSettings(str(tmp_path), test_split="train"))
    assert split.class_names == ["9", "10"] and split.labels.tolist() == [1, 0, 1]


def test_class_folders_count_unless_a_column_is_named(tmp_path):
    write(tmp_path, "cat/1.png", "cat/2.png", "dog/1.png")
    (tmp_path / "metadata.csv").write_text("file_name,breed\ncat/1.png,siam\ncat/2.png,manx\ndog/1.png,pug\n")
    split = load_split(DataSettings(str(tmp_path), test_split="train"))
    assert split.class_names == ["cat", "dog"] and split.labels.tolist() == [0, 0, 1]
    assert any("breed" in remark for remark in split.found["remarks"])
    named = load_split(DataSettings(str(tmp_path), test_split="train", label_column="breed"))
    assert named.class_names == ["manx", "pug", "siam"] and named.labels.tolist() == [2, 0, 1]
    with pytest.raises(UserError, match=r"label_column 'colour': there is no such column .* breed"):
        load_split(DataSettings(str(tmp_path), test_split="train", label_column="colour"))
    (tmp_path / "metadata.csv").write_text("file_name,breed\ncat/gone.png,siam\n")
    with pytest.raises(UserError, match=r"cat/gone.png is listed in the metadata .* not an image there"):
        load_split(DataSettings(str(tmp_path), test_split="train", label_column="breed"))


def test_a_stray_image_beside_classes_and_a_table_is_no_class(tmp_path):
    write(tmp_path, "cat/1.png", "dog/1.png", "stray.png")
    (tmp_path / "metadata.csv").write_text("file_name,breed\ncat/1.png,siam\n")
    assert listed(tmp_path) == {"train": {"cat/1.png": "cat", "dog/1.png": "dog"}}
    assert passed_over(tmp_path) == {"in no class folder": ["stray.png"]}


def test_a_folder_of_tables_with_a_picture_in_it_is_no_image_folder(tmp_path):
    write(tmp_path, "assets/logo.png", "assets/banner.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").touch()
    assert not is_image_folder(tmp_path)
    (tmp_path / "data" / "train.parquet").rename(tmp_path / "data" / "train.jsonl")
    assert is_image_folder(tmp_path)


def test_a_stream_of_an_image_folder_has_its_images_and_knows_how_many(tmp_path):
    write(tmp_path, *(f"{s}/{c}/{n}.png" for s in ("train", "val") for c in ("cat", "dog") for n in range(3)))
    train, test = load_data(DataSettings(str(tmp_path), streaming=True), 0)
    mapped = load_splits(DataSettings(str(tmp_path)), 0)
    assert (len(train), len(test), train.class_names) == (6, 6, ["cat", "dog"])
    for stream, split in zip((train, test), mapped, strict=True):
        rows = [row for shard in range(stream.shards) for row in stream.read(shard)]
        assert [row.index for row in rows] == list(range(6)) and [row.label for row in rows] == split.labels.tolist()
        for row in rows:
            np.testing.assert_array_equal(stream.image(row.index, row.image), split.image(row.index))
    with pytest.raises(UserError, match=r"a stream has no parts .* leave out data\.streaming"):
        load_data(DataSettings(str(tmp_path), streaming=True, holdout=0.2), 0)
