"""Text from others: refused in one line where its form is not right, and shown without control characters."""

import json
import os

import pytest
import yaml

from timm_wsms.cli_errors import explain
from timm_wsms.data.decode import BadImageError, decode
from timm_wsms.errors import UserError
from timm_wsms.evaluation.results_table import Row, markdown_table, text_table
from timm_wsms.foreign import LONGEST, clean, printable, read_json, read_last_line, read_yaml, understood

EVIL = "a\x1b[2J\x1b]0;title\x07\r\n\u202e\x9b31m'\"`"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Küche 猫 – 3\u00a0px 'x' \"y\" \\n", "Küche 猫 – 3\u00a0px 'x' \"y\" \\n"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202eabc\u2028\x9b", "\\u202eabc\\u2028\\x9b"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_acts_on_a_screen_is_escaped_and_nothing_else(text, shown):
    assert printable(text) == shown


def test_clean_reaches_every_text():
    tree = {"\x1b": ["\n", {"a": "\x07"}, 3, None]}
    assert clean(tree) == {"\\x1b": ["\\n", {"a": "\\x07"}, 3, None]}


def test_error_lines_hold_no_control_characters():
    for error in (
        UserError(f"there is no class {EVIL}; fix it"),
        OSError(28, "No space left on device", EVIL),
        RuntimeError(f"DataLoader worker (pid 1) {EVIL}"),
    ):
        line = explain(error)
        assert line is not None and line.isprintable() and "[2J" in line


def test_messages_about_images_hold_no_control_characters(tmp_path):
    path = tmp_path / "a\n\x1b[31m.png"
    path.write_bytes(b"no image")
    with pytest.raises(BadImageError) as caught:
        decode({"bytes": None, "path": str(path)}, "train", 3)
    assert str(caught.value).isprintable() and "a\\n\\x1b[31m.png" in str(caught.value)


def test_tables_hold_no_control_characters():
    rows = [Row(f"{EVIL}|x", 1_000_000, 2_000_000, 50.0)]
    assert all(line.isprintable() for line in text_table(rows).split("\n"))
    lines = markdown_table(rows).split("\n")
    assert len(lines) == 3 and lines[2].isprintable() and "\\|x |" in lines[2]


@pytest.mark.parametrize("text", ["", "{", '"\\ud800', "[" * 100_000 + "]" * 100_000, "1" * 5000, "\ufeff{}"])
def test_what_is_no_json_is_one_line_that_names_the_file(text, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text)
    for read in (read_json, read_last_line):
        with pytest.raises(UserError, match=r"x.json does not hold what it should \(.*\); copy") as caught:
            read(path)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 400
    path.write_text(json.dumps({"a": [1, None]}) + "\n")
    assert read_json(path) == read_last_line(path) == {"a": [1, None]}


LEVELS = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10) if n else '0'}]" for n in range(10))


@pytest.mark.parametrize(
    "text",
    [
        '!!python/object/apply:os.system ["touch executed"]',
        "a: !!python/name:os.system",
        "a: !!python/object/new:os.system [touch executed]",
        LEVELS,
        "a: &a [*a]",
        "a: &a {<<: *a}",
        "a: [",
        "a: " + "[" * 60_000 + "]" * 60_000,
        "- " * 60_000,
        "? " * 60_000,
        "a: \x1b",
        "? [1, 2]\n: 3",
    ],
)
def test_yaml_that_runs_explodes_or_is_none_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml does not hold what it should") as caught:
        read_yaml(path, "fix it")
    assert str(caught.value).isprintable() and str(caught.value).endswith("; fix it")
    assert os.listdir(tmp_path) == ["x.yaml"]


def test_harmless_aliases_are_read(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: &a {lr: 0.1, betas: [0.9, 0.99]}\nb: *a\nc: {<<: *a, lr: 1}\n")
    assert read_yaml(path) == yaml.safe_load(path.read_text())
    path.write_text(f"a: &a [{'0, ' * 90}]\nb: [{'*a, ' * 100}]\n")
    assert len(read_yaml(path)["b"]) == 100
    path.write_text(f"a: &a [{'0, ' * 90}]\nb: [{'*a, ' * 110}]\n")
    with pytest.raises(UserError, match="aliases stand for too much"):
        read_yaml(path)
    path.write_text(f"a: {'x' * LONGEST}")
    with pytest.raises(UserError, match="longer than"):
        read_yaml(path)
    path.write_text("")
    assert read_yaml(path) is None


def test_a_missing_file_and_a_lack_of_memory_are_not_the_contents_fault(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
    with pytest.raises(MemoryError), understood("x"):
        raise MemoryError
    with pytest.raises(UserError, match="as it is"), understood("x"):
        raise UserError("as it is")
    with pytest.raises(UserError, match=r"x does not hold what it should \(KeyError: 'a'\)"), understood("x"):
        {}["a"]
