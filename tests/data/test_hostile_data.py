"""Data made to harm, and inputs that `benchmarks.reliability.fuzz` found: one line, and nothing done."""

import io
import json
import os
import socket
import subprocess

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from timm_wsms.cli_errors import explain
from timm_wsms.data import DataSettings, load_split, load_splits
from timm_wsms.data.decode import BadImageError, check_head, decode, decode_cropped
from timm_wsms.data.folder_walk import DEEPEST
from timm_wsms.data.image_folder import read_image_folder
from timm_wsms.data.stored_names import names_of_splits
from timm_wsms.data.summary import describe, lines
from timm_wsms.errors import UserError

EVIL = "a\x1b[2J\x1b]0;title\x07\n\u202e'\"`<b>"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"


def png(width: int = 8, height: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def refused(call, *arguments, **named) -> str:
    """The line that a command prints for a call that refuses."""
    with pytest.raises((UserError, BadImageError)) as caught:
        call(*arguments, **named)
    line = explain(caught.value) or str(caught.value)
    assert line.isprintable() and len(line) < 700
    return line


@pytest.fixture
def folder(tmp_path):
    """An image folder to spoil."""
    for name in ("test/cat/a.png", "test/dog/b.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(png())
    return tmp_path


def read(folder, **settings):
    return load_split(DataSettings(source=str(folder), **settings))


@pytest.mark.parametrize("way", ["bytes", "path"])
def test_no_program_is_run_on_an_image(tmp_path, monkeypatch, way):
    """Pillow runs Ghostscript to decode EPS, which any file may hold, whatever its name."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was run"))
    (tmp_path / "a.png").write_bytes(EPS)
    value = {"bytes": EPS, "path": None} if way == "bytes" else {"bytes": None, "path": str(tmp_path / "a.png")}
    for call in (decode, lambda *given: decode_cropped(*given, crop=None), check_head):
        assert "cannot be decoded (UnidentifiedImageError" in refused(call, value, "train", 0)


@pytest.mark.parametrize(
    "path",
    [
        "http://127.0.0.1:9/a.png",
        "https://127.0.0.1:9/a.png",
        "zip://a.png::http://127.0.0.1:9/a.zip",
        "http://127.0.0.1:9/::hf://datasets/a/b/a.png",
        "ftp://127.0.0.1:9/a.png",
        "ssh://127.0.0.1:9/a.png",
        "simplecache::http://127.0.0.1:9/a.png",
    ],
)
def test_nothing_is_fetched_from_an_address_in_a_table(tmp_path, monkeypatch, path):
    for name in ("create_connection", "getaddrinfo", "socket"):
        monkeypatch.setattr(socket, name, lambda *_, **__: pytest.fail("a connection was made"))
    assert "leads to a place other than the Hub" in refused(decode, {"bytes": None, "path": path}, "train", 0)
    rows = pa.Table.from_pylist([{"image": {"bytes": None, "path": path}, "label": 0}] * 2)
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    stated = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pa.parquet.write_table(rows.replace_schema_metadata(stated), tmp_path / "test.parquet")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert "leads to a place other than the Hub" in refused(read, tmp_path)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/tty", "pipe", "."])
def test_devices_and_pipes_are_not_read(tmp_path, path):
    os.mkfifo(tmp_path / "pipe")
    value = {"bytes": None, "path": str(tmp_path / path)}
    for call in (decode, check_head):
        assert "it is not a file, but a folder, a device or a pipe" in refused(call, value, "train", 0)


def test_pipes_in_an_image_folder_are_passed_over_or_named(folder):
    os.mkfifo(folder / "test" / "cat" / "pipe")
    found = read_image_folder(folder, DataSettings())
    assert found.splits["test"].passed_over == {"devices, pipes and the like": ["test/cat/pipe"]}
    os.mkfifo(folder / "test" / "dog" / "pipe.png")
    assert "dog/pipe.png) cannot be decoded" in refused(read, folder)


def test_a_small_file_that_is_a_huge_image_is_refused_before_it_takes_memory(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # instead of 89 million
    for width, height, refusal in ((100, 101, "it has 100 × 101 pixels"), (1000, 1000, "DecompressionBombError")):
        file = png(width, height)
        with pytest.warns(Image.DecompressionBombWarning) if width == 100 else monkeypatch.context():
            for call in (decode, check_head):
                assert refusal in refused(call, {"bytes": file, "path": None}, "train", 0)
    assert decode({"bytes": png(100, 100), "path": None}, "train", 0).size == (100, 100)


def test_pillows_own_bound_holds():
    assert 0 < (Image.MAX_IMAGE_PIXELS or 0) < 2**27  # 2**27 pixels of 8 bytes are 1 GB


def test_folders_in_folders_without_end_are_refused(folder):
    inner = folder.joinpath("test", "cat", *["x"] * (DEEPEST - 2))
    inner.mkdir(parents=True)
    assert len(read(folder)) == 2
    (inner / "x" / "x").mkdir(parents=True)
    assert f"holds folders more than {DEEPEST} levels deep" in refused(read, folder)


def test_names_that_act_on_a_screen_are_escaped_where_they_are_told(folder):
    for name in ("train", "test"):
        (folder / name / EVIL).mkdir(parents=True)
        (folder / name / EVIL / f"{EVIL}.png").write_bytes(png())
        (folder / name / EVIL / EVIL).write_bytes(b"no image")
    (folder / "train" / "dog").mkdir()
    (folder / "train" / "dog" / "c.png").write_bytes(png())
    settings = DataSettings(source=str(folder))
    train, test = load_splits(settings, 0)
    told = lines(describe({"train": train, "test": test}, settings))
    assert all(line.isprintable() for line in told) and sum("a\\x1b[2J" in line for line in told) > 1
    (folder / "test" / EVIL / f"{EVIL}.png").write_bytes(b"no image")
    assert "cannot be decoded" in refused(load_splits, settings, 0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.jsonl", "[1]"),
        ("metadata.jsonl", "3"),
        ("metadata.jsonl", "null"),
        ("metadata.jsonl", "[" * 50_000 + "]" * 50_000),
        ("metadata.jsonl", '{"file_name": "/etc/passwd", "x": 1}\n{"file_name": "/etc/passwd", "x": 2}'),
        ("metadata.jsonl", '{"file_name": "../../etc/passwd", "x": 1}'),
        ("metadata.jsonl", '{"file_name": "a\\u0000.png", "x": 1}'),
        ("metadata.csv", "file_name,label\na.png,cat,more\n"),
        ("metadata.csv", "file_name\n" + "x" * 200_000),
        ("metadata.csv", "\0"),
    ],
)
def test_tables_of_labels_that_are_none(folder, name, text):
    (folder / "test" / name).write_text(text)
    refused(read, folder, label_column="x")


def write_arrow(path):
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    rows = pa.Table.from_pylist([{"image": {"bytes": png(), "path": None}, "label": label} for label in (0, 1)])
    table = rows.replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": features}}).encode()})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


def test_an_arrow_file_that_claims_more_than_it_holds_is_refused(tmp_path, monkeypatch):
    """`datasets` would make room for 2 GB."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "data" / "test.arrow"
    path.parent.mkdir()
    write_arrow(path)
    assert len(read(path.parent)) == 2
    whole = path.read_bytes()
    for spoiled in (whole[:4] + (2**31 - 1).to_bytes(4, "little") + whole[8:], whole[: len(whole) // 2]):
        path.write_bytes(spoiled)
        assert "test.arrow is not a whole Arrow file" in refused(read, path.parent)


@pytest.mark.parametrize("features", ["[1]", "3", "[" * 50_000 + "]" * 50_000, '{"label": []}', "{"])
def test_what_a_table_says_of_its_classes_may_be_anything(tmp_path, monkeypatch, features):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = pa.Table.from_pylist([{"image": {"bytes": png(), "path": None}, "label": label} for label in (0, 1)])
    stated = f'{{"info": {{"features": {features}}}}}'.encode()
    (tmp_path / "data").mkdir()
    pa.parquet.write_table(rows.replace_schema_metadata({b"huggingface": stated}), tmp_path / "data" / "test.parquet")
    assert names_of_splits({"test": [str(tmp_path / "data" / "test.parquet")]}) == {}
    refused(read, tmp_path / "data")


def test_class_names_that_are_numbers_are_words(tmp_path, monkeypatch):
    """From the fuzzer."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": [3, "b"]}}
    rows = pa.Table.from_pylist([{"image": {"bytes": png(), "path": None}, "label": label} for label in (0, 1)])
    stated = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    (tmp_path / "data").mkdir()
    pa.parquet.write_table(rows.replace_schema_metadata(stated), tmp_path / "data" / "test.parquet")
    assert read(tmp_path / "data").class_names == ["3", "b"]
