"""A warm start under timm's options: classes, channels and image sizes not the checkpoint's; other ways to a file."""

import pytest
import timm
import torch

from tests.helpers.checkpoints import checkpoint_of, images, logits_differ, run, start, trained, write
from tests.helpers.tiers import slow_except
from timm_wsms.errors import UserError
from timm_wsms.network.position_tables import resample

SWIN = {"embed_dim": 24, "depths": (1, 1, 2, 1), "window_size": 4}
SIZES = [  # backbone, arguments, the checkpoint's image size, the network's
    ("test_vit", {}, 96, 64),
    ("test_vit", {}, 64, 128),
    ("swin_tiny_patch4_window7_224", SWIN, 64, 128),
    ("swinv2_tiny_window8_256", SWIN, 128, 64),
    ("beit_base_patch16_224", {"depth": 3, "embed_dim": 96, "num_heads": 3}, 64, 128),
    ("test_coatnet", {}, 128, 64),
]


@pytest.mark.parametrize("name, kwargs, own, size", slow_except(SIZES, "test_vit", "swin_tiny_patch4_window7_224"))
def test_other_image_size_than_the_checkpoints(name, kwargs, own, size, tmp_path):
    overlay = checkpoint_of(trained(name, img_size=own, **kwargs), tmp_path)
    model = start(f"wsms_{name}", overlay, img_size=size, **kwargs)
    backbone = start(name, overlay, img_size=size, **kwargs)  # timm resamples its tables
    for training in (False, True):
        assert logits_differ(model, backbone, training, images(side=size)) == 0


def test_a_backbone_of_any_size_at_another_input(tmp_path):
    backbone = trained("test_resnet")
    model = start("wsms_test_resnet", checkpoint_of(backbone, tmp_path))
    for side in (32, 50, 97, 160):
        assert logits_differ(model, backbone, False, images(side=side, batch=1)) == 0


@pytest.mark.parametrize("name, kwargs, own, size", slow_except(SIZES, "test_vit", "swin_tiny_patch4_window7_224"))
def test_tables_of_the_stages_are_resampled_from_the_loaded_ones(name, kwargs, own, size, tmp_path):
    overlay = checkpoint_of(trained(name, img_size=size, **kwargs), tmp_path)
    model = start(f"wsms_{name}", overlay, img_size=size, **kwargs)
    loaded = start(name, overlay, img_size=size, **kwargs).state_dict()
    resampled = 0
    for number, stage in model.stages.items():
        for key, tensor in stage.backbone.state_dict().items():
            if key not in loaded:
                continue
            assert torch.equal(model.backbone.state_dict()[key], loaded[key])
            if tensor.shape != loaded[key].shape:
                assert torch.equal(tensor, resample(loaded[key], tensor.shape)), (number, key)
                resampled += 1
            else:
                assert torch.equal(tensor, loaded[key]), (number, key)
    assert resampled or "swin" in name  # where the window stays, so do its tables


@pytest.mark.parametrize("name", slow_except(["test_vit", "test_convnext", "mobilenetv3_small_050"], "test_convnext"))
@pytest.mark.parametrize("arguments", [{"num_classes": 5}, {"num_classes": 0}, {"in_chans": 1}, {"in_chans": 4}])
def test_other_classes_and_channels(name, arguments, tmp_path):
    size = {"img_size": 64} if name == "test_vit" else {}
    overlay = checkpoint_of(trained(name, **size), tmp_path)
    model, backbone = start(f"wsms_{name}", overlay, **arguments, **size), start(name, overlay, **arguments, **size)
    if arguments.get("num_classes"):  # a new classifier: each has drawn its own
        backbone.get_classifier().load_state_dict(model.get_classifier().state_dict())
    assert logits_differ(model, backbone, False, images(arguments.get("in_chans", 3))) == 0
    assert model.num_classes == arguments.get("num_classes", 1000)
    assert model.in_chans == arguments.get("in_chans", 3)
    for stage in model.stages.values():  # the stages have the adapted first convolution
        for key, tensor in stage.backbone.state_dict().items():
            own = model.backbone.state_dict()[key]
            assert tensor.shape != own.shape or torch.equal(tensor, own)


def test_pth_and_safetensors_give_the_same(tmp_path):
    backbone = trained("test_vit", img_size=64)
    for name in ("weights.pth", "weights.bin", "weights.safetensors"):
        model = start("wsms_test_vit", write(backbone.state_dict(), tmp_path / name), img_size=64)
        assert logits_differ(model, backbone, True, images()) == 0


def test_state_dict_in_memory():
    backbone = trained("test_resnet")
    model = start("wsms_test_resnet", {"state_dict": dict(backbone.state_dict())})
    assert logits_differ(model, backbone, True, images()) == 0


def test_config_of_ones_own_instead_of_an_overlay(tmp_path):
    backbone = trained("test_resnet", num_classes=7)
    cfg = timm.get_pretrained_cfg("wsms_test_resnet").to_dict()
    cfg |= {**checkpoint_of(backbone, tmp_path), "num_classes": 7}
    model = timm.create_model("wsms_test_resnet", pretrained=True, pretrained_cfg=cfg)
    assert logits_differ(model, backbone, True, images()) == 0


# ---- checkpoint_path and load_state_dict


@pytest.mark.parametrize(
    "name, size",
    slow_except([("test_resnet", {}), ("test_vit", {"img_size": 64}), ("densenet121", {})], "test_resnet"),
)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_checkpoint_path_of_a_backbone(name, size, suffix, tmp_path):
    small = {"block_config": (2, 2, 2, 2)} if name == "densenet121" else {}
    backbone = trained(name, **size, **small)
    path = write(backbone.state_dict(), tmp_path / f"weights.{suffix}")["file"]
    model = timm.create_model(f"wsms_{name}", checkpoint_path=path, **size, **small)
    started = start(f"wsms_{name}", {"file": path}, **size, **small)
    for training in (False, True):
        assert logits_differ(model, backbone, training, images()) == 0
    model = timm.create_model(f"wsms_{name}", checkpoint_path=path, **size, **small)
    assert (model.integration.gamma == 0).all()
    for key, tensor in started.state_dict().items():
        if not key.startswith("integration."):
            assert ".end." in key or torch.equal(model.state_dict()[key], tensor), key


def test_checkpoint_path_of_a_network(tmp_path):
    source = timm.create_model("wsms_test_resnet")
    with torch.no_grad():
        source.integration.gamma.copy_(torch.rand(96) + 0.1)
    for suffix in ("safetensors", "pth"):
        path = write(source.state_dict(), tmp_path / f"weights.{suffix}")["file"]
        model = timm.create_model("wsms_test_resnet", checkpoint_path=path)
        assert torch.equal(model.integration.gamma, source.integration.gamma)
        assert torch.equal(run(model, False), run(source, False))


def test_a_state_dict_with_too_little_or_too_much_is_refused():
    state = dict(trained("test_resnet").state_dict())
    model = timm.create_model("wsms_test_resnet")
    for changed in ({**state, "extra": torch.zeros(1)}, {key: state[key] for key in list(state)[1:]}):
        with pytest.raises(RuntimeError, match=r"extra|conv1\.0\.weight"):
            model.load_state_dict(changed)


@pytest.mark.parametrize("assign", [False, True])
def test_load_state_dict_of_a_backbone_keeps_what_is_shared_shared(assign):
    backbone = trained("test_resnet")
    model = timm.create_model("wsms_test_resnet")
    keys = list(model.state_dict())
    model.load_state_dict(backbone.state_dict(), assign=assign)
    assert list(model.state_dict()) == keys
    stage = model.stages["2"].backbone
    assert stage.conv1[0].weight is model.backbone.conv1[0].weight
    assert stage.bn1.weight.data_ptr() != model.backbone.bn1.weight.data_ptr()
    assert stage.bn1.running_mean.data_ptr() != model.backbone.bn1.running_mean.data_ptr()
    assert logits_differ(model, backbone, False, images()) == 0


@pytest.mark.parametrize("form", ["wsmean_", "wsms_", "ms_"])
def test_a_part_of_a_backbones_state_dict_is_taken_as_timm_takes_it(form):
    """The usual way to fine-tune: all but the classifier, with strict=False."""
    backbone = trained("test_resnet")
    part = {key: tensor for key, tensor in backbone.state_dict().items() if not key.startswith("fc.")}
    plain, model = (timm.create_model(name, num_classes=5) for name in ("test_resnet", f"{form}test_resnet"))
    classifier = model.get_classifier().weight.detach().clone()
    found, expected = model.load_state_dict(part, strict=False), plain.load_state_dict(part, strict=False)
    assert (
        found.missing_keys
        == [f"backbone.{key}" for key in expected.missing_keys]
        == ["backbone.fc.weight", "backbone.fc.bias"]
    )
    assert found.unexpected_keys == expected.unexpected_keys == []
    assert torch.equal(model.get_classifier().weight, classifier)
    plain.fc.load_state_dict(model.get_classifier().state_dict())
    with torch.no_grad():
        stage1 = model.eval().stage_logits(images())[0] if form == "wsmean_" else model.eval()(images())
        torch.testing.assert_close(stage1, plain.eval()(images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["wsmean_", "wsms_"])
def test_running_statistics_of_each_stages_own_do_not_load_where_they_are_shared(form):
    source, shared = (timm.create_model(f"{form}test_resnet", unshared_norms=norms) for norms in ("statistics", "none"))
    shared.load_state_dict(source.state_dict())  # so far they are equal
    source.train()(images())
    with pytest.raises(UserError, match=r"another stages\.2\..*running_mean than .*, which this network shares"):
        shared.load_state_dict(source.state_dict())
