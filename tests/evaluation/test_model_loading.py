"""Names of trained models, and the order of their classes."""

import pytest
import torch
from torch import nn

import timm_wsms  # noqa: F401  registers the names
from timm_wsms.errors import UserError
from timm_wsms.evaluation.model_loading import in_order_of, load_model, timm_name


class Ranks(nn.Module):
    """Gives each class its number as its logit."""

    def __init__(self, label_names):
        super().__init__()
        self.pretrained_cfg = {"label_names": label_names}

    def forward(self, images):
        return torch.arange(3.0).repeat(len(images), 1)


@pytest.mark.parametrize("label_names", [["c", "a", "b"], {"0": "c", "1": "a", "2": "b"}])
def test_the_same_names_in_another_order_are_matched_by_name(label_names):
    model, remark = in_order_of(Ranks(label_names), ["a", "b", "c"])
    assert model(torch.zeros(2, 1)).tolist() == [[1.0, 2.0, 0.0]] * 2
    assert remark is not None and "by name" in remark
    assert not model.state_dict()


@pytest.mark.parametrize("label_names", [["a", "b", "c"], None])
def test_nothing_changes_in_the_datas_order_or_without_names(label_names):
    model = Ranks(label_names)
    assert in_order_of(model, ["a", "b", "c"]) == (model, None)


@pytest.mark.parametrize("label_names", [["a", "x", "c"], ["a", "c", "c"]])
def test_other_names_are_matched_by_number_and_told(label_names):
    model = Ranks(label_names)
    same, remark = in_order_of(model, ["a", "b", "c"])
    assert same is model
    assert remark is not None and "by number" in remark and f'"{label_names[1]}" is "b"' in remark


@pytest.mark.parametrize("label_names", [["a", "b"], ["a", "b", "c", "d"]])
def test_names_of_other_number_are_told(label_names):
    model = Ranks(label_names)
    same, remark = in_order_of(model, ["a", "b", "c"])
    assert same is model
    assert remark == f"it names {len(label_names)} classes, the data 3; they are matched by number"


def test_a_new_head_is_refused():
    with pytest.raises(UserError, match=r"leave out --model_kwargs\.num_classes"):
        load_model("resnet20_cifar", num_classes=5)


def test_names_of_models(tmp_path):
    for name in ("resnet50", "resnet50.a1_in1k", "wsms_resnet50.a1_in1k", "hf-hub:timm/resnet50.a1_in1k"):
        assert timm_name(name) == name
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).touch()
    assert timm_name(str(tmp_path)) == timm_name(f"local-dir:{tmp_path}") == f"local-dir:{tmp_path}"


def test_a_folder_of_a_models_name_is_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet50").mkdir()
    assert timm_name("resnet50") == "resnet50"
    with pytest.raises(UserError, match=r"resnet50 has no config.json and no model.safetensors"):
        timm_name("local-dir:resnet50")


def test_a_run_is_told_from_its_model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    with pytest.raises(UserError, match=rf"name a checkpoint folder, such as {tmp_path}/model"):
        timm_name(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet20_cifra", "no model resnet20_cifra; did you mean resnet20_cifar"),
        ("owner/name", "no folder owner/name; mend the path, or write hf-hub:owner/name"),
        ("wsms_crossvit_9_240", "cannot be staged"),
        ("resnet20_cifar", "resnet20_cifar cannot be loaded; .*No pretrained weights"),
        ("resnet50.no_tag", "resnet50.no_tag cannot be loaded; .*no_tag"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(name, says):
    with pytest.raises(UserError, match=says) as error:
        load_model(name)
    assert len(str(error.value).splitlines()) == 1
