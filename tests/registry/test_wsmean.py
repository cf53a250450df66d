"""`wsmean_<backbone>`: the recommended form by its name alone; and what a saved config states, and used to mean."""

import json

import pytest
import timm
import torch

from tests.helpers.checkpoints import checkpoint_of, images, run, start, trained
from timm_wsms import UserError, WsmsMeanNet

RECOMMENDED = {"fusion": "mean", "pyramid": [1, 0.5], "unshared_norms": "statistics"}


def same(model, other):
    """Whether two networks are built alike and hold the same tensors."""
    own, others = model.state_dict(), other.state_dict()
    return (
        type(model) is type(other)
        and model.factors() == other.factors()
        and own.keys() == others.keys()
        and all(torch.equal(own[key], others[key]) for key in own)
    )


def seeded(name, **kwargs):
    torch.manual_seed(4)
    return timm.create_model(name, **kwargs)


@pytest.mark.parametrize("name, kwargs", [("test_resnet", {}), ("test_vit", {"img_size": 64}), ("resnet20_cifar", {})])
def test_it_is_the_recommended_form(name, kwargs):
    model = seeded(f"wsmean_{name}", num_classes=3, **kwargs)
    assert isinstance(model, WsmsMeanNet) and model.factors() == [1, 0.5]
    other = seeded(f"wsms_{name}", num_classes=3, **kwargs, **RECOMMENDED)
    assert same(model, other)
    x = images(side=64 if kwargs else 32)
    assert torch.equal(run(model, False, x), run(other, False, x))


def test_statistics_are_each_stages_own_and_scales_are_shared():
    model = timm.create_model("wsmean_test_resnet")
    own, stage = model.backbone.bn1, model.stages["2"].backbone.bn1
    assert stage.weight is own.weight and stage.running_mean.data_ptr() != own.running_mean.data_ptr()


def test_arguments_take_the_place_of_the_names_own():
    assert timm.create_model("wsmean_test_resnet", pyramid=[2, 1]).factors() == [1, 2]
    assert timm.create_model("wsmean_test_resnet", stages=3).factors() == [1, 0.5, 0.25]
    assert same(seeded("wsmean_test_resnet", unshared_norms="all"), seeded(
        "wsms_test_resnet", **RECOMMENDED | {"unshared_norms": "all"}))  # fmt: skip
    unshared = timm.create_model("wsmean_test_resnet", share_weights=False)
    assert unshared.stages["2"].backbone.fc.weight is not unshared.backbone.fc.weight


def test_what_does_not_go_with_the_name():
    for arguments, words in (
        ({"fusion": "concat"}, "averages the stages' logits; for fusion='concat' take wsms_test_resnet"),
        ({"integration": "conv3x3"}, "leave out integration"),
        ({"stages": 2, "pyramid": [1, 0.5, 0.25]}, "3 factors"),
        ({"unshared_norms": "some"}, "unshared_norms must be one of"),
    ):
        with pytest.raises(UserError, match=words.replace("(", r"\(")):
            timm.create_model("wsmean_test_resnet", **arguments)


def test_warm_start(tmp_path):
    backbone = trained("test_resnet")
    model = start("wsmean_test_resnet", checkpoint_of(backbone, tmp_path))
    x = images()
    with torch.no_grad():
        expected = torch.stack([backbone.eval()(image) for image in (x, torch.nn.functional.avg_pool2d(x, 2))]).mean(0)
    torch.testing.assert_close(run(model, False, x), expected)


def test_its_folder_loads_by_itself(tmp_path):
    source = seeded("wsmean_test_resnet", num_classes=3)
    timm.models.save_for_hf(source, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "wsmean_test_resnet"
    assert {key: config["model_args"][key] for key in RECOMMENDED} == RECOMMENDED
    assert same(timm.create_model(f"local-dir:{tmp_path}", pretrained=True), source)
    config["model_args"]["fusion"] = "concat"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="for fusion='concat' take wsms_test_resnet"):
        timm.create_model(f"local-dir:{tmp_path}")


# ---- what a config states


@pytest.mark.parametrize(
    "name, arguments, pyramid, norms",
    [
        ("wsms_test_resnet", {}, [1, 0.5, 0.25], "batch"),
        ("wsms_test_resnet", {"stages": 2, "unshared_norms": "none"}, [1, 0.5], "none"),
        ("ms_test_resnet", {"stages": 1}, [1], "batch"),
        ("wsms_test_resnet", {"fusion": "mean"}, [1, 0.5, 0.25], "batch"),
        ("wsms_test_resnet", {"fusion": "mean", "pyramid": [0.5, 2, 1]}, [0.5, 2, 1], "batch"),
        ("wsmean_test_resnet", {}, [1, 0.5], "statistics"),
        ("wsmean_test_resnet", {"stages": 3}, [1, 0.5, 0.25], "statistics"),
    ],
)
def test_a_saved_config_states_pyramid_and_norms(name, arguments, pyramid, norms, tmp_path):
    source = seeded(name, num_classes=3, **arguments)
    timm.models.save_for_hf(source, tmp_path, safe_serialization=True)
    stated = json.loads((tmp_path / "config.json").read_text())["model_args"]
    assert (stated["pyramid"], stated["unshared_norms"]) == (pyramid, norms)
    assert same(timm.create_model(f"local-dir:{tmp_path}", pretrained=True), source)


@pytest.mark.parametrize("form", [{}, {"fusion": "mean"}])
def test_a_config_from_before_means_what_it_meant(form, tmp_path):
    """Folders of version 0.1.0 name neither pyramid nor norms where they are the defaults."""
    source = seeded("wsms_test_resnet", num_classes=3, stages=3, unshared_norms="batch", **form)
    timm.models.save_for_hf(source, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"] = {**form, "in_chans": 3, "num_classes": 3, "global_pool": "avg"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert model.factors() == [1, 0.5, 0.25] and same(model, source)
    assert model.stages["2"].backbone.bn1.weight is not model.backbone.bn1.weight  # "batch"
    assert torch.equal(run(model, False), run(source, False))
