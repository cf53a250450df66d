"""Model cards: every figure from the folder's own files, valid for the Hub, and their lines of Python run."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index
from PIL import Image
from timm.models import save_for_hf

from tests.helpers.paths import ROOT
from tests.helpers.snippets import run_snippet
from timm_wsms.errors import UserError
from timm_wsms.evaluation import Row
from timm_wsms.hub import card, results
from timm_wsms.training.settings import Settings, dump

MODELS = ROOT / "hub" / "models"
REVIEWED = Path(__file__).parent / "card_reviewed.md"
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
PLAIN = Row("plain", 1_000_000, 80_000_000, 90.0, {8: 50.0, 16: 60.0})
OWN = Row("test_resnet", 1_234_567, 89_000_000, 91.234, {8: 51.0, 16: 61.0})
HARDWARE = {"processes": 2, "device": "Some GPU", "versions": {"torch": "9.9", "timm": "8.8"}}


@pytest.fixture
def folder(tmp_path):
    """A checkpoint folder as a run leaves it, but for the card."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10)
    save_for_hf(model, tmp_path, safe_serialization=True)
    settings = Settings(model="test_resnet", epochs=12, lr=0.25)
    settings.data.source = "uoft-cs/cifar10"
    (tmp_path / "settings.yaml").write_text(dump(settings))
    epochs = [{"epoch": epoch, "test_top5": 90.0 + epoch} for epoch in range(1, 8)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in epochs))
    results.write(tmp_path, [PLAIN, OWN], HARDWARE)
    return tmp_path


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_whole_card_is_the_reviewed_one(tmp_path):
    """`REVIEWED` was read by eye; whoever changes the template reads its new text and takes it over."""
    folder = Path(shutil.copytree(MODELS / "wsms_resnet20_cifar10", tmp_path / "model"))
    own = results.read(folder)
    rows = [Row(**{**vars(row), "by_size": {8: 50.0, 32: 90.04}}) for row in own.rows]
    results.write(folder, rows, own.hardware, own.data)
    (folder / "scale.png").write_bytes(b"a plot")
    replace(folder / "settings.yaml", "residual: false", "pretrained: true")
    replace(folder / "settings.yaml", "model: wsms_resnet20_cifar", "model: wsms_resnet50.a1_in1k")
    assert card.render(folder, "someone/small") == REVIEWED.read_text()


@pytest.mark.parametrize("name", ["wsms_resnet20_cifar10", "resnet20_cifar10"])
def test_the_kept_models_have_the_card_of_today(name):
    assert (MODELS / name / "README.md").read_text() == card.render(MODELS / name)


@pytest.mark.parametrize(
    ("architecture", "first", "second"),
    [
        ("wsmean_resnet20_cifar", "A multi-stage network that averages", "with the same weights"),
        ("ms_resnet20_cifar", "A multi-stage network (Takahashi", "with weights of its own for each"),
    ],
)
def test_the_card_says_how_the_stages_are_combined_and_what_they_share(architecture, first, second, tmp_path):
    folder = Path(shutil.copytree(MODELS / "wsms_resnet20_cifar10", tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architecture": architecture, "model_args": {}}))
    replace(folder / "settings.yaml", "model: wsms_resnet20_cifar", f"model: {architecture}")
    text = card.render(folder)
    assert first in text and second in " ".join(text.split())


def test_front_matter_is_valid_and_true(folder):
    data = ModelCard.load(card.write(folder)).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("timm", "image-classification", "apache-2.0")
    assert data.datasets == ["uoft-cs/cifar10"] and "base_model" not in data.to_dict()
    assert {"image-classification", "timm"} <= set(data.tags)
    first, second = data.eval_results
    assert data.model_name == "test_resnet"
    assert (first.task_type, first.metric_type) == ("image-classification", "accuracy")
    assert (first.dataset_type, first.dataset_split, first.metric_value) == ("uoft-cs/cifar10", "test", 91.23)
    assert (second.metric_name, second.metric_value) == ("Top-5 accuracy (%)", 97.0)
    index = yaml.safe_load(FRONT_MATTER.search((folder / "README.md").read_text())[1])["model-index"]
    assert eval_results_to_model_index("test_resnet", data.eval_results) == index


def test_figures_come_from_the_folder(folder):
    text = card.render(folder)
    for words in (
        "# test_resnet",
        "1.235 M",
        "89.0 M",
        "3 × 160 × 160",
        "91.23 %",
        "97.00 %",
        "| Epochs | 7 |",
        "0.25 at its peak",
        "10 classes",
        "| Hardware | 2 × Some GPU |",
        "| Versions | torch 9.9, timm 8.8 |",
        "| plain | 1.000 M | 80.0 M | 90.00 | 50.0 | 60.0 |",
        "image 3×160×160 ─► backbone ─► head ─► 10 classes",
    ):
        assert words in text
    assert "{{" not in text and "{%" not in text and "None" not in text
    assert "\n\n\n" not in text
    assert "scale.png" not in text


def test_lines_of_python_run(folder):
    text = card.render(folder)
    lines = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert (
        lines.startswith("# needs timm-wsms: `pip install .` in a clone of its repository\nimport timm, timm_wsms\n")
        and len(lines.splitlines()) == 5
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 180, 3), dtype=np.uint8))
    names = run_snippet(lines.replace("path/to/this/folder", str(folder)), image=image)
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10).eval()
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    transform = timm.data.create_transform(**{key: model.pretrained_cfg[key] for key in keys})
    expected = model(transform(image)[None])
    torch.testing.assert_close(names["logits"], expected)


NOT_COMPARED = "it is not known how much the stages contribute"


def test_what_is_said_of_the_baseline(folder):
    results.write(folder, [OWN], HARDWARE)
    plain = card.render(folder)
    assert "for comparison with multi-stage networks" in plain and NOT_COMPARED not in plain
    replace(folder / "config.json", '"test_resnet"', '"wsms_test_resnet"')
    assert NOT_COMPARED in card.render(folder)
    results.write(folder, [PLAIN, OWN], HARDWARE)
    compared = card.render(folder)
    assert "`plain` is the plain backbone" in compared and "with the same weights" in compared
    assert NOT_COMPARED not in compared


@pytest.mark.parametrize("source", ["digits", "data/of/mine/flowers"])
def test_data_that_is_not_on_the_hub(folder, source):
    replace(folder / "settings.yaml", "uoft-cs/cifar10", source)
    readme = card.write(folder)
    assert ModelCard.load(readme).data.datasets is None
    assert "data/of/mine" not in readme.read_text()
    results.write(folder, [OWN], HARDWARE, "uoft-cs/cifar10")  # whoever keeps it knows better
    assert ModelCard.load(card.write(folder)).data.datasets == ["uoft-cs/cifar10"]


@pytest.mark.parametrize(
    ("model", "pretrained", "expected"),
    [
        ("wsms_resnet50.a1_in1k", True, "timm/resnet50.a1_in1k"),
        ("resnet50.a1_in1k", True, "timm/resnet50.a1_in1k"),
        ("hf-hub:someone/small@v1", True, "someone/small"),
        ("local-dir:somewhere/model", True, None),
        ("wsms_resnet50.a1_in1k", False, None),
    ],
)
def test_base_model(model, pretrained, expected):
    assert card.base_model({"model": model, "model_kwargs": {"pretrained": pretrained}}) == expected


@pytest.mark.parametrize("key", ["pretrained_cfg", "pretrained_cfg_overlay"])
def test_weights_of_another_origin_are_not_called_timms(key):
    """A file that the settings name takes the place of the repo that timm's config names."""
    kwargs = {"pretrained": True, key: {"file": "/home/me/weights/mine.safetensors"}}
    settings = {"model": "wsms_resnet50.a1_in1k", "model_kwargs": kwargs}
    assert card.base_model(settings) is None and card.weights_file(settings) == "mine.safetensors"
    kwargs[key] = {"hf_hub_id": "someone/small@v1"}
    assert card.base_model(settings) == "someone/small" and card.weights_file(settings) is None
    kwargs[key]["file"] = "mine.safetensors"  # timm prefers it
    assert card.base_model(settings) is None and card.weights_file(settings) == "mine.safetensors"
    kwargs[key] = {"url": "https://example.org/mine.pth?token=secret"}  # timm prefers the Hub
    assert card.base_model(settings) == "timm/resnet50.a1_in1k" and card.weights_file(settings) is None
    kwargs["pretrained"] = False
    assert card.base_model(settings) is None


def test_the_card_names_the_file_that_a_run_started_from(folder):
    settings = yaml.safe_load((folder / "settings.yaml").read_text())
    settings["model_kwargs"] |= {"pretrained": True, "pretrained_cfg_overlay": {"file": "mine.safetensors"}}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    results.write(folder, [OWN], HARDWARE, "digits")
    text = card.write(folder).read_text()
    assert "| Started from | a file, `mine.safetensors` |" in text and "base_model" not in text


def test_missing_values_are_named(folder):
    replace(folder / "settings.yaml", "batch_size", "no_batch_size")
    with pytest.raises(UserError, match="batch_size"):
        card.write(folder)
    replace(folder / "metrics.jsonl", "test_top5", "something")
    with pytest.raises(UserError, match="test_top5"):
        card.write(folder)
    (folder / "results.json").unlink()
    with pytest.raises(UserError, match=r"has no results.json, which its card needs"):
        card.write(folder)
    assert not (folder / "README.md").exists()


def test_bad_front_matter_is_refused(folder, tmp_path):
    template = tmp_path / "template.md"
    template.write_text("---\nmodel-index:\n- name: {{ architecture }}\n  results:\n  - task: {}\n---\n")
    with pytest.raises(UserError, match="the Hub would refuse the card's front matter"):
        card.write(folder, template=template)
    assert not (folder / "README.md").exists()


def test_what_was_found_in_the_data_is_told(folder):
    """Also which split was evaluated, where the settings name another."""
    assert "## Data" not in card.render(folder)
    split = {"name": "val", "images": 3, "images_per_class": {"cat": 2, "dog": 1}, "passed_over": {}}
    heic = {"files that Pillow does not read (.heic)": {"files": 2, "first": ["train/a.heic", "train/b.heic"]}}
    found = {
        "source": "pets",
        "classes": ["cat", "dog"],
        "splits": {"train": {**split, "name": "train", "passed_over": heic}, "test": split},
        "only_in": {"test": ["dog"]},
        "beside": {},
        "remarks": ["there is no split 'test'; 'val' is taken"],
    }
    (folder / "data.json").write_text(json.dumps(found))
    text = card.render(folder)
    for line in (
        "- pets: 2 classes (cat, dog)",
        "- test: 3 images of split 'val', 1 to 2 per class",
        "- passed over: 2 files that Pillow does not read (.heic): train/a.heic, train/b.heic",
        "- WARNING: only in test: 1 class (dog)",
        "- there is no split 'test'; 'val' is taken",
    ):
        assert line in text.splitlines(), text
    assert "on the split `val`" in text and ModelCard(text).data.eval_results[0].dataset_split == "val"
