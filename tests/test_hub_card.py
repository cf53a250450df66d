"""Model cards: every figure from the folder or the caller, valid for the Hub, and their lines of Python run."""

import json
import re
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

from hub import card
from timm_wsms.training.settings import Settings, dump

TEMPLATE = Path(__file__).parents[1] / "MODEL_CARD.md"
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
VALUES = {
    "parameters": 1_234_567,
    "multiplications": 89_000_000,
    "top1": 91.234,
    "top5": 99.5,
    "table": "| model | accuracy % |\n| --- | ---: |\n| plain | 90.00 |",
    "baseline": "plain",
    "repo_id": None,
    "sizes_known": False,
}


@pytest.fixture
def folder(tmp_path):
    """A checkpoint folder as a run leaves it, but for the card."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10)
    save_for_hf(model, tmp_path, safe_serialization=True)
    settings = Settings(model="test_resnet", epochs=12, lr=0.25)
    settings.data.source = "uoft-cs/cifar10"
    (tmp_path / "settings.yaml").write_text(dump(settings))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"epoch": epoch}) + "\n" for epoch in range(1, 8)))
    return tmp_path


def test_front_matter_is_valid_and_true(folder):
    data = ModelCard.load(card.fill(TEMPLATE, folder, **VALUES)).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("timm", "image-classification", "apache-2.0")
    assert data.datasets == ["uoft-cs/cifar10"]
    assert {"image-classification", "timm"} <= set(data.tags)
    (result,) = data.eval_results
    assert data.model_name == "test_resnet"
    assert (result.task_type, result.metric_type) == ("image-classification", "accuracy")
    assert (result.dataset_type, result.dataset_split, result.metric_value) == ("uoft-cs/cifar10", "test", 91.23)
    index = yaml.safe_load(FRONT_MATTER.search((folder / "README.md").read_text())[1])["model-index"]
    assert eval_results_to_model_index("test_resnet", data.eval_results) == index


def test_figures_come_from_the_folder(folder):
    text = card.fill(TEMPLATE, folder, **VALUES).read_text()
    for words in (
        "# test_resnet",
        "1.235 M",
        "89.0 M",
        "3 × 160 × 160",
        "91.23 %",
        "99.50 %",
        "| Epochs | 7 |",
        "0.25 at its peak",
        "10 classes",
    ):
        assert words in text
    assert VALUES["table"] in text
    assert "{{" not in text and "{%" not in text and "None" not in text
    assert "\n\n\n" not in text


def test_lines_of_python_run(folder):
    text = card.fill(TEMPLATE, folder, **VALUES).read_text()
    lines = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert lines.startswith("# pip install timm-wsms\nimport timm, timm_wsms\n") and len(lines.splitlines()) == 5
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 180, 3), dtype=np.uint8))
    names = {"image": image}
    exec(lines.replace("path/to/this/folder", str(folder)), names)
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10).eval()
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    transform = timm.data.create_transform(**{key: model.pretrained_cfg[key] for key in keys})
    expected = model(transform(image)[None])
    torch.testing.assert_close(names["logits"], expected)


def test_hub_name(folder):
    text = card.fill(TEMPLATE, folder, **{**VALUES, "repo_id": "somebody/test_resnet"}).read_text()
    assert 'timm.create_model("hf-hub:somebody/test_resnet", pretrained=True)' in text


NOT_COMPARED = "how much the stages add is not known"


def test_what_is_said_of_the_baseline(folder):
    alone = {**VALUES, "baseline": None, "table": None, "top5": None}
    plain = card.fill(TEMPLATE, folder, **alone).read_text()
    assert "to compare multi-stage networks with" in plain and NOT_COMPARED not in plain and "top-5" not in plain
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"test_resnet"', '"wsms_test_resnet"'))
    assert NOT_COMPARED in card.fill(TEMPLATE, folder, **alone).read_text()
    compared = card.fill(TEMPLATE, folder, **VALUES).read_text()
    assert "`plain` is the plain backbone" in compared and "with the same weights" in compared
    assert NOT_COMPARED not in compared


@pytest.mark.parametrize("source", ["digits", "data/of/mine/flowers"])
def test_data_that_is_not_on_the_hub(folder, source):
    path = folder / "settings.yaml"
    path.write_text(path.read_text().replace("uoft-cs/cifar10", source))
    readme = card.fill(TEMPLATE, folder, **VALUES)
    assert ModelCard.load(readme).data.datasets is None
    assert "data/of/mine" not in readme.read_text()
    named = {**VALUES, "data_id": "uoft-cs/cifar10", "data_name": "CIFAR-10"}  # the caller knows better
    assert ModelCard.load(card.fill(TEMPLATE, folder, **named)).data.datasets == ["uoft-cs/cifar10"]


def test_missing_values_are_named(folder, tmp_path):
    values = {name: value for name, value in VALUES.items() if name not in ("top1", "table")}
    with pytest.raises(ValueError, match="values for: table, top1"):
        card.fill(TEMPLATE, folder, **values)
    path = folder / "settings.yaml"
    path.write_text(path.read_text().replace("batch_size", "no_batch_size"))
    with pytest.raises(ValueError, match="batch_size"):
        card.fill(TEMPLATE, folder, **VALUES)
    assert not (folder / "README.md").exists()


def test_bad_front_matter_is_refused(folder, tmp_path):
    template = tmp_path / "template.md"
    template.write_text("---\nmodel-index:\n- name: {{ architecture }}\n  results:\n  - task: {}\n---\n")
    with pytest.raises(ValueError, match="model"):
        card.fill(template, folder)
    assert not (folder / "README.md").exists()
