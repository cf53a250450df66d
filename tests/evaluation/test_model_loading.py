"""Names of trained models."""

import pytest

import timm_wsms  # noqa: F401  registers the names
from timm_wsms.errors import UserError
from timm_wsms.evaluation.model_loading import load_model, timm_name


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
        ("owner/name", "no folder owner/name; fix the path, or write hf-hub:owner/name"),
        ("wsms_crossvit_9_240", "cannot be staged"),
        ("resnet20_cifar", "resnet20_cifar cannot be loaded; .*No pretrained weights"),
        ("resnet50.no_tag", "resnet50.no_tag cannot be loaded; .*no_tag"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(name, says):
    with pytest.raises(UserError, match=says) as error:
        load_model(name)
    assert len(str(error.value).splitlines()) == 1
