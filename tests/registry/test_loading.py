"""Weights of a multi-stage network from a file, in every form that training scripts leave; and files that hold none."""

import argparse
import json
import logging

import pytest
import timm
import torch

from tests.helpers.checkpoints import checkpoint_of, images, run, start, trained, write
from timm_wsms import UserError

FORMS = ["wsms_test_resnet", "ms_test_resnet", "wsmean_test_resnet", "wsmean_test_vit"]
SIZE = {"wsmean_test_vit": {"img_size": 64}}


def network(name, num_classes=5, **kwargs):
    """A network in which no tensor is what it is in a new one."""
    torch.manual_seed(3)
    model = timm.create_model(name, num_classes=num_classes, **SIZE.get(name, {}), **kwargs)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) / 4)
    return model


def lines(caplog):
    """What was said while loading."""
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name.startswith("timm_wsms")]


def prefixed(state_dict, prefix):
    return {f"{prefix}{key}": tensor for key, tensor in state_dict.items()}


CONTENTS = {
    "plain": lambda state: state,
    "timm's training script": lambda state: {
        "epoch": 3, "arch": "x", "state_dict": state, "args": argparse.Namespace(lr=0.1), "version": 2, "metric": 1.0,
    },
    "its moving average": lambda state: {
        "state_dict": {key: torch.zeros_like(tensor) for key, tensor in state.items()}, "state_dict_ema": state,
    },
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "data parallel": lambda state: {"model": prefixed(state, "module.")},
    "both": lambda state: {"state_dict": prefixed(state, "module._orig_mod.")},
    "both the other way round": lambda state: prefixed(state, "_orig_mod.module."),
}  # fmt: skip


@pytest.mark.parametrize("form", CONTENTS)
@pytest.mark.parametrize("where", ["pth", "memory"])
def test_known_forms(form, where, tmp_path, caplog):
    source = network("wsms_test_resnet")
    content = CONTENTS[form](dict(source.state_dict()))
    overlay = {"state_dict": content} if where == "memory" else write(content, tmp_path / "weights.pth")
    caplog.set_level(logging.INFO)
    model = start("wsms_test_resnet", overlay, num_classes=5)
    assert torch.equal(run(model, False), run(source, False))
    total = len(source.state_dict())
    assert total > 80
    named = "the given state dict" if where == "memory" else str(tmp_path / "weights.pth")
    assert lines(caplog) == [("INFO", f"{named}: loaded {total} of {total} tensors of wsms_test_resnet")]
    assert "state_dict" not in model.pretrained_cfg
    caplog.clear()
    other = start("wsms_test_resnet", overlay, num_classes=3)  # where timm loads with strict=False
    classifier = other.get_classifier(name_only=True)
    own, found = source.state_dict(), other.state_dict()
    fresh = {key for key in found if own[key].shape != found[key].shape or not torch.equal(own[key], found[key])}
    assert fresh == {f"{classifier}.weight", f"{classifier}.bias"} and found[f"{classifier}.bias"].shape == (3,)
    ((level, line),) = lines(caplog)
    assert level == "WARNING" and line.startswith(f"{named}: loaded {total - 2} of {total} tensors of wsms_test_resnet")
    assert line.endswith("(5 classes, not 3), and starts fresh")


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module."])
@pytest.mark.parametrize("name", FORMS)
def test_another_number_of_classes(name, prefix, tmp_path, caplog):
    source = network(name)
    overlay = write(prefixed(source.state_dict(), prefix), tmp_path / "weights.safetensors")
    model = start(name, overlay, num_classes=3, **SIZE.get(name, {}))
    own, found = source.state_dict(), model.state_dict()
    classifier = model.get_classifier(name_only=True)
    assert found[f"{classifier}.weight"].shape[0] == 3
    for key, tensor in found.items():
        assert key.startswith(f"{classifier}.") or torch.equal(own[key], tensor), key
    total = len(own)
    assert lines(caplog) == [(
        "WARNING",
        f"{tmp_path / 'weights.safetensors'}: loaded {total - 2} of {total} tensors of {name}; its classifier is not "
        "that of the checkpoint (5 classes, not 3), and starts fresh",
    )]  # fmt: skip


def test_the_checkpoints_number_of_classes_is_what_its_tensors_say(tmp_path, caplog):
    """The tag says 1,000, the file has 5, and 5 are asked for: then the classifier is the file's."""
    source = network("wsms_test_resnet")
    model = start("wsms_test_resnet", checkpoint_of(source, tmp_path), num_classes=5)
    assert torch.equal(run(model, False), run(source, False))
    assert not lines(caplog)


def test_without_classifier(tmp_path, caplog):
    source = network("wsms_test_resnet")
    model = start("wsms_test_resnet", checkpoint_of(source, tmp_path), num_classes=0)
    assert torch.equal(model.eval().forward_features(images()), source.eval().forward_features(images()))
    assert "(5 classes, not none)" in lines(caplog)[0][1]
    headless = network("wsms_test_resnet", num_classes=0)
    model = start("wsms_test_resnet", checkpoint_of(headless, tmp_path), num_classes=4)
    assert torch.equal(model.eval().forward_features(images()), headless.eval().forward_features(images()))
    assert "(no classes, not 4)" in lines(caplog)[1][1]


def test_a_classifier_for_each_stage(tmp_path):
    source = network("wsmean_test_resnet", share_weights=False)
    model = start("wsmean_test_resnet", checkpoint_of(source, tmp_path), num_classes=3, share_weights=False)
    own = source.state_dict()
    fresh = [key for key, tensor in model.state_dict().items() if own[key].shape != tensor.shape]
    assert len(fresh) == 4 and all(".fc." in key for key in fresh)
    assert all(key in fresh or torch.equal(own[key], tensor) for key, tensor in model.state_dict().items())


def test_other_channels(tmp_path):
    """timm sums the first convolution's channels."""
    source = network("wsms_test_resnet")
    model = start("wsms_test_resnet", checkpoint_of(source, tmp_path), num_classes=5, in_chans=1)
    found, own = model.backbone.conv1[0].weight, source.backbone.conv1[0].weight
    torch.testing.assert_close(found, own.sum(1, keepdim=True))
    assert torch.equal(model.backbone.layer1[0].conv1.weight, source.backbone.layer1[0].conv1.weight)


# ---- what holds no weights of the model


@pytest.mark.parametrize("classes", [1000, 5])  # with timm's own number it loads strictly, with another it does not
@pytest.mark.parametrize("kind", ["another network", "another backbone", "empty of weights"])
def test_nothing_that_fits_is_an_error(kind, classes, tmp_path):
    path = tmp_path / "weights.pth"
    content = {
        "another network": lambda: timm.create_model("wsms_test_vit").state_dict(),
        "another backbone": lambda: trained("test_vit").state_dict(),
        "empty of weights": lambda: {"state_dict": {"step": torch.ones(3)}},
    }[kind]()
    with pytest.raises(UserError) as caught:
        start("wsms_test_resnet", write(content, path), num_classes=classes)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert "give a checkpoint of test_resnet, or one of wsms_test_resnet" in str(caught.value)


def test_names_that_nothing_is_called_are_an_error_in_memory_and_from_the_hub(monkeypatch):
    state = prefixed(trained("test_resnet").state_dict(), "encoder.")
    with pytest.raises(UserError, match="the given state dict holds no weights of test_resnet"):
        start("wsms_test_resnet", {"state_dict": state}, num_classes=5)
    other = trained("test_vit").state_dict()
    for module in ("timm_wsms.registry.weights", "timm.models._builder"):
        monkeypatch.setattr(f"{module}.load_state_dict_from_hf", lambda *_, **__: dict(other))
    with pytest.raises(UserError, match="someone/vit of the Hugging Face Hub holds no weights of test_resnet"):
        start("wsms_test_resnet", {"hf_hub_id": "someone/vit", "hf_hub_filename": None}, num_classes=5)


@pytest.mark.parametrize("change", ["missing", "more", "shape"])
def test_a_network_that_fits_in_part_is_an_error(change, tmp_path):
    state = dict(network("wsms_test_resnet").state_dict())
    key = "stages.2.backbone.bn1.weight"
    if change == "missing":
        del state[key]
    elif change == "more":
        state["stages.9.backbone.bn1.weight"] = state[key]
    else:
        state[key] = state[key][:-1]
    for classes in (5, 3):
        with pytest.raises(UserError, match="does not load") as caught:
            start("wsms_test_resnet", write(state, tmp_path / "weights.pth"), num_classes=classes)
        assert "backbone.bn1.weight" in str(caught.value)


# ---- a checkpoint folder


def without_weight(state):
    del state["backbone.fc.weight"]


def without_classifier(state):
    del state["backbone.fc.weight"], state["backbone.fc.bias"]


def of_other_classes(state):
    state.update({key: state[key][:4] for key in ("backbone.fc.weight", "backbone.fc.bias")})


def of_other_width(state):
    state["backbone.fc.weight"] = state["backbone.fc.weight"][:, :-1]


@pytest.fixture
def folder(tmp_path):
    """A checkpoint folder of 5 classes, and the network that it holds."""
    source = network("wsms_test_resnet")
    timm.models.save_for_hf(source, tmp_path, model_config={"num_classes": 5}, safe_serialization=True)
    return tmp_path, source


@pytest.mark.parametrize("kwargs", [{}, {"num_classes": 5}])
@pytest.mark.parametrize("spoil", [without_weight, without_classifier, of_other_classes, of_other_width])
def test_a_folder_whose_classifier_does_not_fit_its_own_number_of_classes_is_an_error(spoil, kwargs, folder):
    path, source = folder
    state = dict(source.state_dict())
    spoil(state)
    write(state, path / "model.safetensors")
    with pytest.raises(UserError) as caught:
        timm.create_model(f"local-dir:{path}", pretrained=True, **kwargs)
    assert str(caught.value).startswith(f"{path} does not load (") and "backbone.fc.weight" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kwargs", [{}, {"num_classes": 5}, {"num_classes": 3}, {"num_classes": 0}])
def test_a_folders_values_and_another_number_of_classes(kwargs, folder, caplog):
    path, source = folder
    model = timm.create_model(f"local-dir:{path}", pretrained=True, **kwargs)
    own, found = source.state_dict(), model.state_dict()
    classes = kwargs.get("num_classes", 5)
    assert model.num_classes == classes
    fresh = {key for key, tensor in found.items() if not torch.equal(own[key], tensor)}
    if classes == 5:
        assert not fresh and own.keys() == found.keys() and not lines(caplog)
        assert torch.equal(run(model, False), run(source, False))
    else:
        assert fresh == ({"backbone.fc.weight", "backbone.fc.bias"} if classes else set())
        assert own.keys() - found.keys() == (set() if classes else {"backbone.fc.weight", "backbone.fc.bias"})
        ((level, line),) = lines(caplog)
        assert level == "WARNING" and f"(5 classes, not {classes or 'none'}), and starts fresh" in line


def test_a_file_without_the_classifiers_weight_is_an_error_too(tmp_path, caplog):
    """Its bias tells the number of classes; where another is asked for, the bias starts fresh too."""
    source = network("wsms_test_resnet")
    state = dict(source.state_dict())
    without_weight(state)
    overlay = write(state, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"does not load .*backbone\.fc\.weight"):
        start("wsms_test_resnet", overlay, num_classes=5)
    start("wsms_test_resnet", overlay, num_classes=3)
    total = len(source.state_dict())
    assert f"loaded {total - 2} of {total} " in lines(caplog)[0][1]
    assert "(5 classes, not 3), and starts fresh" in lines(caplog)[0][1]


# ---- a backbone's


def test_a_backbones_weights_are_counted_and_a_dropped_classifier_is_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    backbone = trained("test_resnet")
    overlay = checkpoint_of(backbone, tmp_path)
    varied = [key for key, tensor in backbone.state_dict().items() if tensor.is_floating_point() and tensor.std() > 0]
    assert len(varied) > 60
    start("wsms_test_resnet", overlay)
    where = f"{tmp_path / 'weights.safetensors'}: loaded"
    what = f"{len(varied)} tensors of test_resnet that are not constant"
    assert lines(caplog) == [("INFO", f"{where} {len(varied)} of {what}")]
    caplog.clear()
    model = start("wsms_test_resnet", overlay, num_classes=5)
    assert torch.equal(model.backbone.conv1[0].weight, backbone.conv1[0].weight)
    assert lines(caplog) == [(
        "WARNING",
        f"{where} {len(varied) - 2} of {what}; its classifier is not that of the checkpoint (1000 classes, not 5), "
        "and starts fresh",
    )]  # fmt: skip


def test_a_backbones_state_dict_in_memory_with_prefixes():
    backbone = trained("test_resnet")
    content = {"state_dict": prefixed(backbone.state_dict(), "_orig_mod.")}
    model = start("wsms_test_resnet", {"state_dict": content})
    assert torch.equal(run(model, False), run(backbone, False))
    assert "_orig_mod.conv1.0.weight" in content["state_dict"]  # the user's is as it was


def test_a_file_beside_the_config_of_another_architecture_is_told(tmp_path, caplog):
    """Two of timm's names may have the same tensors, and differ in padding or activation."""
    timm.models.save_for_hf(timm.create_model("test_resnet"), tmp_path, safe_serialization=True)
    overlay = {"file": str(tmp_path / "model.safetensors")}
    start("wsms_test_resnet", overlay)
    assert not [line for line in lines(caplog) if "config.json" in line[1]]
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architecture": "tf_test_resnet"}))
    start("wsms_test_resnet", overlay)
    said = f"{overlay['file']}: config.json beside it says that it is for tf_test_resnet, not for wsms_test_resnet"
    assert ("WARNING", said) in lines(caplog)
    (tmp_path / "config.json").write_text("[")  # anything
    start("wsms_test_resnet", overlay)
