"""Checkpoint folders made to harm, and inputs that `benchmarks.reliability.fuzz` found: one line, and nothing done."""

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from markdown_it import MarkdownIt

from tests.helpers.paths import ROOT
from timm_wsms.data import summary
from timm_wsms.errors import UserError
from timm_wsms.hub import backbone_folder, card, diff, published, register, results
from timm_wsms.hub.client import Remote
from timm_wsms.hub.verify_folder import check_config, check_files, check_outputs, check_results, load
from timm_wsms.network.cascade import Cascade
from timm_wsms.registry.size_check import check_size

MODEL = ROOT / "hub" / "models" / "wsms_resnet20_sizes_cifar10"
EVIL = "x\x1b[2J\n---\nlicense: \x9b\u202e"


@pytest.fixture
def folder(tmp_path):
    """A checkpoint folder to spoil."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(call, *arguments):
    """The line with which a call refuses."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize("name", ["wsmean_resnet50", "resnet50"])
def test_a_network_far_larger_than_its_weights_is_not_built(folder, name):
    """25 million numbers for weights of 0.3 million; of 100 GB nothing else would come."""
    change(folder / "config.json", architecture=name, model_args={})
    assert "describes a network of" in refused(load, folder)
    if name.startswith("wsm"):
        with pytest.raises(UserError, match="describes a network of 24 million numbers"):
            timm.create_model(f"local-dir:{folder}", pretrained=True)


def test_the_size_is_found_out_without_memory_and_without_random_numbers():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    said = refused(check_size, lambda: torch.nn.Linear(2**20, 2**20), 2**20, "x")  # 4 TB
    assert "1,099,513 million numbers" in said
    check_size(lambda: torch.nn.Linear(1000, 1000), 2**20, "x")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "test/tensors.safetensors"])
def test_a_link_out_of_the_folder_is_not_published(folder, tmp_path, name):
    check_files(folder)
    (tmp_path / "secret").write_text("token")
    (folder / name).unlink()
    (folder / name).symlink_to(os.path.relpath(tmp_path / "secret", (folder / name).parent))
    assert f"{name} is a link out of the folder" in refused(check_files, folder)


def test_a_snapshot_of_the_hubs_cache_is_fine(tmp_path):
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "0"
    shutil.copytree(MODEL, snapshot)
    blobs.mkdir()
    shutil.move(snapshot / "config.json", blobs / "0")
    (snapshot / "config.json").symlink_to("../../blobs/0")
    check_files(snapshot)


def test_a_card_holds_no_control_characters_and_no_front_matter_of_a_strangers(folder):
    data = {"source": EVIL, "classes": [EVIL], "only_in": {EVIL: [EVIL]}, "beside": {}, "remarks": [EVIL]}
    data["splits"] = {"test": {"name": EVIL, "images": 1, "passed_over": {EVIL: {"files": 1, "first": [EVIL]}}}}
    (folder / summary.FILE).write_text(json.dumps(data))
    rows = json.loads((folder / results.FILE).read_text())["rows"]
    hardware = {"processes": 1, "device": EVIL, "versions": {EVIL: EVIL}}
    change(folder / results.FILE, data=None, rows=[{**row, "model": f"{EVIL}|"} for row in rows], hardware=hardware)
    text = card.render(folder)
    assert all(line.isprintable() for line in text.split("\n"))
    shown = re.findall(r"x\\+x1b\\?\[2J\\+n---\\+nlicense", text)  # with backslashes of Markdown's, or as code
    assert text.split("\n").count("---") == 2 and len(shown) > 5
    assert all(line.isprintable() for line in summary.lines(data))


MARKUP = "</td><script>evil()</script> [go](http://evil.example) ![p](http://evil.example/p.png) ``` `` ` | <img src=x>"


def test_a_card_holds_no_markup_of_a_strangers(folder):
    """No HTML, links and pictures but the template's, and as many cells in each row of a table as there were."""
    before = tokens(card.render(folder))
    data = {"source": MARKUP, "classes": [MARKUP, f"# {MARKUP}"], "only_in": {MARKUP: [MARKUP]}, "beside": {}}
    data |= {"remarks": [f"> {MARKUP}"], "splits": {"test": {"name": MARKUP, "images": 1, "passed_over": {}}}}
    (folder / summary.FILE).write_text(json.dumps(data))
    settings = yaml.safe_load((folder / "settings.yaml").read_text())
    settings["optimizer"]["name"] = settings["seed"] = settings["data"]["source"] = settings["lr"] = MARKUP
    settings["model_kwargs"][MARKUP] = MARKUP
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    rows = json.loads((folder / results.FILE).read_text())["rows"]
    hardware = {"processes": MARKUP, "device": MARKUP, "versions": {MARKUP: MARKUP}}
    change(folder / results.FILE, data=None, rows=[{**row, "model": MARKUP} for row in rows], hardware=hardware)
    text = card.render(folder)
    after = tokens(text)
    assert text.count("evil()") > 10
    for kind in ("html_block", "html_inline", "link_open", "image", "td_open", "th_open", "tr_open", "heading_open"):
        added = kind == "heading_open"  # the one of the data
        assert len(after.get(kind, [])) == len(before.get(kind, [])) + added, kind
    assert {token.attrs["href"] for token in after["link_open"]} == {
        token.attrs["href"] for token in before["link_open"]
    }


def tokens(text):
    """What a reader of Markdown that lets HTML through makes of a card without its front matter, by kind."""
    found = {}
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(text.split("\n---\n", 1)[1]):
        for one in (token, *(token.children or ())):
            found.setdefault(one.type, []).append(one)
    return found


@pytest.mark.parametrize("name", ["hf-hub:a/b](http://evil.example)", "hf-hub:a", "hf-hub:../x/y"])
def test_a_card_links_to_the_hub_only(folder, name):
    settings = yaml.safe_load((folder / "settings.yaml").read_text())
    settings |= {"model": name, "model_kwargs": {"pretrained": True}}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    assert "is not a name on the Hub" in refused(card.render, folder)


def test_what_lies_in_a_repo_is_shown_whatever_it_is(tmp_path):
    (tmp_path / "README.md").write_bytes(f"# {EVIL}".encode() + b"\xff\xfe\0\n")
    api = SimpleNamespace(hf_hub_download=lambda *_, **__: tmp_path / "README.md")
    there = Remote("0" * 40, {"README.md": "0" * 40}, {"README.md": 9}, False)
    said = diff.describe(api, "x/y", {"README.md": b"# ours\n"}, there)
    assert "+# ours" in said and "-# x\\x1b[2J" in said and "\ufffd" in said
    assert all(line.isprintable() for line in said.split("\n"))


@pytest.mark.parametrize("shape", [[2**40], [2**62, 4], [10**30], [-1]])
def test_a_header_that_claims_a_huge_shape_is_refused(folder, shape):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    claim, model = len(header).to_bytes(8, "little") + header + b"\0" * 4, load(folder)
    (folder / "test" / "tensors.safetensors").write_bytes(claim)
    assert "tensors.safetensors does not hold what it should" in refused(check_outputs, model, folder)
    (folder / "model.safetensors").write_bytes(claim)
    assert "config.json and model.safetensors do not agree" in refused(load, folder)


def test_folders_in_folders_without_end_are_refused(folder):
    folder.joinpath(*["x"] * 200).mkdir(parents=True)
    assert "levels deep" in refused(check_files, folder)


DEEP = "[" * 50_000 + "]" * 50_000


@pytest.mark.parametrize(
    ("file", "text", "read"),
    [
        ("config.json", DEEP, check_config),
        ("config.json", '{"architecture": "resnet18", "pretrained_cfg": {}, "label_names": 3}', check_config),
        ("config.json", '{"architecture": "resnet18", "pretrained_cfg": {}, "num_classes": NaN}', check_config),
        ("config.json", "[]", register.read),
        ("metrics.jsonl", "", check_results),
        ("metrics.jsonl", "3", check_results),
        ("metrics.jsonl", '{"backbone": null, "epoch"', check_results),
        ("metrics.jsonl", "[]", lambda folder: backbone_folder.measured(folder, 1)),
        ("metrics.jsonl", '{"epoch": 1, "test_top5": "' + EVIL[:1] + '"}', card.render),
        ("results.json", '{"rows": []}', results.read),
        ("results.json", '{"rows": [{"by_size": {"x": 1}}], "hardware": {}, "data": 1}', results.read),
        ("results.json", '{"rows": [{"model": "a", "parameters": 1, "accuracy": 1e999}]}', results.read),
        ("settings.yaml", "model: !!python/object/apply:os.system [touch executed]", card.render),
        ("settings.yaml", "", card.render),
        ("data.json", "[]", card.render),
        ("data.json", '{"classes": 3, "source": 1, "splits": {"test": {"name": []}}}', card.render),
        (
            "cascade.json",
            f'{{"factors": [0.5, 1], "temperatures": 1, "confidence": [1{"0" * 400}]}}',
            Cascade.from_folder,
        ),
        ("cascade.json", DEEP, Cascade.from_folder),
        ("published.json", '[{"name": 1}]', None),
        ("published.json", "{", None),
    ],
)
def test_files_that_do_not_hold_what_they_should(folder, file, text, read, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / file).write_text(text)
    said = refused(read, folder) if read else refused(published.published, folder / file)
    assert str(folder) in said or "the config" in said or file == "cascade.json"
    assert not (folder / "executed").exists()


def test_published_configs_hold_nothing_but_what_describes_the_input(tmp_path):
    entry = {"name": "wsms_resnet18", "tag": "a", "repo": "x/y", "revision": "0", "sha256": "0", "accuracy": 1.0}
    config = {"input_size": [3, 8, 8], "url": "http://127.0.0.1/evil", "custom_load": True, "newer": 1}
    (tmp_path / "p.json").write_text(json.dumps([{**entry, "config": config, "newer": 1}]))
    (read,) = published.published(tmp_path / "p.json")
    assert read.config == {"input_size": [3, 8, 8]} and read.pretrained_cfg().hf_hub_id == "x/y@0"


def test_test_tensors_of_another_shape_or_kind_are_refused(folder):
    from safetensors.torch import load_file, save_file

    file = folder / "test" / "tensors.safetensors"
    model, whole = load(folder), load_file(file)
    check_outputs(model, folder)
    for spoiled in (
        {"logits": whole["logits"]},
        {**whole, "input": whole["input"][0, 0, 0]},
        {"input": whole["input"]},
    ):
        save_file(spoiled, file)
        assert "tensors.safetensors" in refused(check_outputs, model, folder)
