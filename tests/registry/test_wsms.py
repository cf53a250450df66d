"""Names, tags, arguments: what timm's registry says of the networks, and what an import costs."""

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.models import get_arch_pretrained_cfgs, get_deprecated_models, is_model_in_modules, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

import timm_wsms
from tests.helpers.tiers import slow_except
from timm_wsms import UserError, WsmsNet
from timm_wsms.backbones import NAMES
from timm_wsms.timm_private import registry

TABLE = json.loads((Path(timm_wsms.__file__).parent / "registry" / "stageable.json").read_text())
STAGEABLE = [name for name in (*TABLE["stageable"], *NAMES) if timm.is_model(name)]
SAMPLE = ["resnet50", "convnext_tiny", "efficientnet_b0", "densenet121", "mobilenetv3_small_050", "test_nfnet",
          "test_mambaout", "resnetv2_50", "vgg11_bn", "dla34", "regnety_002", "resnet20_cifar", "resnet50_avgpool",
          "densenet100_k24_cifar", "test_vit", "swin_tiny_patch4_window7_224"]  # fmt: skip


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def refused(name="wsms_test_resnet", **kwargs):
    """The one line that a user sees."""
    with pytest.raises(UserError) as caught:
        on_meta(name, **kwargs)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# ---- names


def test_every_backbone_that_can_be_staged_has_all_names():
    assert len(STAGEABLE) > 1300
    for prefix in ("wsms_", "ms_", "wsmean_"):
        listed = timm.list_models(f"{prefix}*")
        names = {name for name in STAGEABLE if prefix != "wsmean_" or name not in TABLE["not_mean"]}
        assert {f"{prefix}{name}" for name in names} <= set(listed)
        assert len(listed) == len(set(listed))
        if timm.__version__ == TABLE["timm"]:  # a newer timm has names that the table does not know
            assert {name.removeprefix(prefix) for name in listed} == names


def test_timm_lists_them_as_a_module_of_their_own():
    expected = {*timm.list_models("wsms_*"), *timm.list_models("ms_*"), *timm.list_models("wsmean_*")}
    assert set(timm.list_models(module="wsms")) == expected
    assert all(is_model_in_modules(f"{prefix}resnet50", ["wsms"]) for prefix in ("wsms_", "ms_", "wsmean_"))
    assert "resnet50" in timm.list_models(module="resnet")  # which are still where they were
    assert not expected & set(timm.list_models(module="resnet"))


def test_no_name_has_two_prefixes():
    prefixes = ("wsms_", "ms_", "wsmean_")
    twice = tuple(f"{first}{second}" for first in prefixes for second in prefixes)
    assert not [name for name in timm.list_models() if name.startswith(twice)]


def test_a_backbone_that_cannot_be_staged_is_not_registered():
    names = [f"{prefix}{name}" for prefix in ("wsms_", "ms_", "wsmean_") for name in TABLE["not_stageable"]]
    names += [f"wsmean_{name}" for name in TABLE["not_mean"]] + ["wsms_no_such_backbone"]
    assert len(names) > 12 and not [name for name in names if timm.is_model(name)]
    assert not {*names} & get_deprecated_models().keys()
    with pytest.raises(RuntimeError, match=r"Unknown model \(wsms_crossvit_9_240\)"):
        timm.create_model("wsms_crossvit_9_240")


# ---- tags


def test_tags_are_the_backbones_own():
    compared = 0
    for name in STAGEABLE:
        tags = [*get_arch_pretrained_cfgs(name)]
        assert [f"wsms_{tag}" for tag in tags] == [*get_arch_pretrained_cfgs(f"wsms_{name}")]
        assert timm.is_model_pretrained(f"wsms_{name}") == timm.is_model_pretrained(name)
        for tag in tags:
            own, ours = timm.get_pretrained_cfg(tag), timm.get_pretrained_cfg(f"wsms_{tag}")
            for field in dataclasses.fields(own):
                if field.name not in ("first_conv", "classifier", "architecture"):
                    assert getattr(ours, field.name) == getattr(own, field.name), (tag, field.name)
                    compared += 1
            assert ours.architecture in (None, f"wsms_{name}")
    assert compared > 10_000


def test_pretrained_names_are_the_backbones():
    own = {name for name in timm.list_pretrained() if name.split(".")[0] in STAGEABLE}
    assert len(own) > 700
    assert {name.removeprefix("wsms_") for name in timm.list_pretrained("wsms_*")} == own
    assert timm.list_pretrained("ms_*") == []


def test_ms_names_have_no_tags():
    for name in timm.list_models("ms_*"):
        assert not get_arch_pretrained_cfgs(name)
        assert not timm.is_model_pretrained(name)
    model = on_meta("ms_resnet50")
    assert model.default_cfg["architecture"] == "ms_resnet50"
    assert not any(model.default_cfg.get(key) for key in ("url", "file", "hf_hub_id", "hf_hub_filename", "tag"))
    own = timm.get_pretrained_cfg("resnet50")
    assert (model.default_cfg["mean"], model.default_cfg["std"]) == (own.mean, own.std)
    assert model.default_cfg["input_size"] == own.input_size


@pytest.mark.parametrize("prefix", ["wsms_", "ms_", "wsmean_"])
@pytest.mark.parametrize("name", slow_except(SAMPLE, "test_nfnet", "test_mambaout", "resnet20_cifar", "test_vit"))
def test_default_cfg_is_true(name, prefix):
    model, own = on_meta(prefix + name), timm.get_pretrained_cfg(name)
    cfg = model.default_cfg
    first_convs = (cfg["first_conv"],) if isinstance(cfg["first_conv"], str) else cfg["first_conv"]
    for path in first_convs:
        first_conv = model.get_submodule(path)
        assert isinstance(first_conv, nn.Conv2d) and first_conv.in_channels == 3
    classifier = model.get_submodule(cfg["classifier"])
    assert classifier is model.get_classifier()
    width = classifier.out_channels if isinstance(classifier, nn.Conv2d) else classifier.out_features
    assert width == cfg["num_classes"] == model.num_classes
    for key in ("mean", "std", "input_size", "crop_pct", "interpolation", "pool_size"):
        assert cfg[key] == getattr(own, key)
    features = model.forward_features(torch.zeros(1, *cfg["input_size"], device="meta"))
    if prefix != "wsmean_" and features.ndim == 4:
        height_and_width = features.shape[1:3] if model.layout == "NHWC" else features.shape[2:]
        assert height_and_width == cfg["pool_size"]
    assert cfg["architecture"] == prefix + name
    data = timm.data.resolve_data_config(model=model)
    assert (data["mean"], data["std"], data["input_size"]) == (own.mean, own.std, own.input_size)


@pytest.mark.parametrize("name", ["levit_128s", "efficientvim_m1"])
def test_classifier_is_where_the_weights_are(name):
    """timm's `get_classifier` gives a module around the layer."""
    model = on_meta(f"wsms_{name}", num_classes=7)
    own = timm.get_pretrained_cfg(name).classifier
    assert model.pretrained_cfg["classifier"] == tuple(f"backbone.{part}" for part in own)
    for part in model.pretrained_cfg["classifier"]:
        assert model.state_dict()[f"{part}.weight"].shape[0] == 7


# ---- a backbone registered later


@pytest.fixture
def registered():
    """Leaves timm's registry as it was."""
    kinds = (dict, set)
    places = {name: value for name, value in vars(registry).items() if isinstance(value, kinds) and name[:4] == "_mod"}
    saved = {name: copy.deepcopy(value) if "cfgs" not in name else value.copy() for name, value in places.items()}
    yield
    for name, value in places.items():
        value.clear()
        value.update(saved[name])


def my_backbone(pretrained=False, **kwargs):
    """Two levels more than a stem."""
    return timm.models.build_model_with_cfg(
        ResNet, "my_backbone", pretrained, block=BasicBlock, layers=(1, 1, 1, 1), channels=(8, 8, 16, 16), **kwargs
    )


def test_a_backbone_registered_later(registered):
    with pytest.raises(UserError, match="timm has no model 'my_backbone'; register it with"):
        timm_wsms.register("my_backbone")
    sys.modules[__name__].default_cfgs = {}
    register_model(my_backbone)
    assert "wsms_my_backbone" not in timm.list_models("wsms_*")
    timm_wsms.register("my_backbone")
    for prefix in ("wsms_", "ms_"):
        assert f"{prefix}my_backbone" in timm.list_models(module="wsms")
        model = timm.create_model(f"{prefix}my_backbone", num_classes=3).eval()
        assert isinstance(model, WsmsNet) and isinstance(model.backbone, ResNet)
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
        shared = model.stages["2"].backbone.conv1.weight is model.backbone.conv1.weight
        assert shared == (prefix == "wsms_")


def test_entrypoints_say_what_they_are():
    for name, words in (("wsms_resnet50", "weight-shared multi-stage"), ("ms_resnet50", "as a multi-stage"),
                        ("wsmean_resnet50", "averaged")):  # fmt: skip
        entrypoint = timm.model_entrypoint(name)
        assert entrypoint.__name__ == name and words in entrypoint.__doc__ and "`resnet50`" in entrypoint.__doc__


# ---- arguments


def test_the_networks_arguments_arrive():
    model = on_meta(
        "wsms_test_resnet", stages=2, integration="conv3x3", integration_channels=24, residual=False,
        share_weights=True, unshared_norms="none",
    )  # fmt: skip
    assert list(model.stages) == ["2"]
    assert model.integration.conv.kernel_size == (3, 3) and model.integration.conv.out_channels == 24
    assert model.integration.gamma is None and model.num_features == 24
    assert model.stages["2"].backbone.bn1.weight is model.backbone.bn1.weight


@pytest.mark.parametrize(
    "name, stages, channels, gamma",
    [
        ("wsms_resnet50", 3, 2048, True),
        ("wsms_resnet20_cifar", 3, 128, False),  # paper, Section 4.2
        ("wsms_densenet100_k24_cifar", 3, 128, False),  # paper, Section 4.1
        ("wsms_resnet50_avgpool", 3, 2048, False),  # paper, Section 4.3
        ("wsms_test_convnext", 3, 64, True),
    ],
)
def test_defaults(name, stages, channels, gamma):
    model = on_meta(name)
    assert len(model.stages) + 1 == stages
    assert model.integration.conv.out_channels == channels and model.integration.conv.kernel_size == (1, 1)
    assert (model.integration.gamma is not None) == gamma
    if gamma:
        assert (timm.create_model(name).integration.gamma == 1).all()  # nothing to start from


@pytest.mark.parametrize("name", ["wsms_resnet20_cifar", "wsms_resnet50"])
@pytest.mark.parametrize("residual, kind, channels", [(True, "conv1x1", "f1"), (False, "conv3x3", "default"),
                                                      (False, "none", "sum")])  # fmt: skip
def test_channels_of_the_integrated_map(name, residual, kind, channels):
    widths = {"wsms_resnet20_cifar": (64, 32, 16), "wsms_resnet50": (2048, 1024, 512)}[name]
    default = 128 if "cifar" in name else widths[0]
    expected = {"f1": widths[0], "default": default, "sum": sum(widths)}[channels]
    model = on_meta(name, residual=residual, integration=kind)
    assert model.num_features == model.get_classifier().in_features == expected
    if kind == "none":
        assert not list(model.integration.parameters())
    else:
        assert model.integration.conv.in_channels == sum(widths)


def test_too_many_stages_says_how_many_there_are():
    assert refused(stages=6) == "stages must be 1 to 5, the levels of this backbone; not 6"
    assert refused("wsms_resnet20_cifar", stages=4) == "stages must be 1 to 3, the levels of this backbone; not 4"
    assert "not 0" in refused(stages=0)
    assert refused("wsms_test_vit", stages=7) == "stages must be 1 to 6, the blocks of this backbone; not 7"


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"integration": "conv5x5"}, ["integration must be one of conv1x1, conv3x3, none", "'conv5x5'"]),
        ({"unshared_norms": "layer"}, ["unshared_norms must be one of batch, statistics, all, none", "'layer'"]),
        ({"integration_channels": 7}, ["residual", "96", "residual=False"]),
        ({"integration": "none"}, ["residual", "integration='none'", "residual=False"]),
        ({"integration": "none", "residual": True}, ["residual=False"]),
        ({"integration": "none", "residual": False, "integration_channels": 5}, ["gives 336 channels"]),
        ({"integration_channels": 0, "residual": False}, ["integration_channels must be positive, not 0"]),
        ({"integration_channels": -1, "residual": False}, ["integration_channels must be positive, not -1"]),
        ({"stages": "3"}, ["stages must be int, not '3'"]),
        ({"stages": 2.0}, ["stages must be int, not 2.0"]),
        ({"stages": True}, ["stages must be int, not True"]),
        ({"residual": 1}, ["residual must be bool, not 1"]),
        ({"share_weights": "no"}, ["share_weights must be bool, not 'no'"]),
        ({"integration": 1}, ["integration must be str, not 1"]),
    ],
)
def test_arguments_that_do_not_fit(arguments, words):
    message = refused(**arguments)
    assert all(word in message for word in words), message


def test_image_too_small_for_the_stages():
    model = timm.create_model("wsms_resnet20_cifar").eval()
    with pytest.raises(UserError, match="image of 3×8 pixels is too small for 3 stages: give at least 4×4"):
        model(torch.zeros(1, 3, 3, 8))
    assert model(torch.zeros(1, 3, 4, 8)).shape == (1, 10)


@pytest.mark.parametrize("feature_cls", ["list", "hook", "fx"])
def test_feature_maps_come_from_one_class_only(feature_cls):
    message = refused(features_only=True, feature_cls=feature_cls)
    assert message == "features_only of wsms_test_resnet goes through forward_intermediates; leave out feature_cls"


def test_backbones_own_arguments_arrive():
    model = on_meta("wsms_test_resnet", num_classes=7, in_chans=1, global_pool="max", drop_rate=0.25,
                    drop_path_rate=0.5)  # fmt: skip
    assert model.num_classes == 7 and model.in_chans == 1 and model.global_pool == "max"
    assert model(torch.zeros(2, 1, 64, 64, device="meta")).shape == (2, 7)
    for part in (model.backbone, model.stages["2"].backbone):
        assert part.conv1[0].in_channels == 1
    assert model.backbone.drop_rate == 0.25
    rates = [module.drop_prob for module in model.backbone.modules() if type(module).__name__ == "DropPath"]
    assert rates and max(rates) == 0.5
    # a head of another width takes them too
    model = on_meta("wsms_test_resnet", num_classes=7, global_pool="max", drop_rate=0.25, residual=False,
                    integration_channels=8)  # fmt: skip
    assert (model.head.fc.out_features, model.head.global_pool.pool_type, model.head.drop.p) == (7, "max", 0.25)
    assert model.num_classes == 7 and model.global_pool == "max"
    with pytest.raises(TypeError, match="no_such_argument"):
        on_meta("wsms_test_resnet", no_such_argument=1)


def test_arguments_found_in_a_file_must_be_known(tmp_path):
    model = timm.create_model("wsms_test_resnet", stages=2)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_args"]["stages"] == 2
    assert len(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).stages) == 1

    for arguments, words in (
        ({"block": "evil"}, "the config's model_args have an unknown argument 'block'"),
        ({"stages": "2"}, "stages must be int"),
        ({"stages": 9}, "stages must be 1 to 5"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, "model_args": arguments}))
        assert words in refused(f"local-dir:{tmp_path}", pretrained=True)


def test_channels_of_a_file(tmp_path):
    model = timm.create_model("wsms_mnist_cnn", channels=[5, 7, 9])
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    x = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(again.eval()(x), model.eval()(x))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_args": {"channels": [5, 7, "9"]}}))
    assert "channels = \"[5, 7, '9']\", which no network accepts" in refused(f"local-dir:{tmp_path}", pretrained=True)


# ---- what an import costs

COUNT = """
import json, sys
import torch
from torch import nn
calls = 0
def count(frame, event, argument):
    global calls
    calls += event in ("call", "c_call")
sys.setprofile(count)
import timm
of_timm = calls
built = []
init = nn.Module.__init__
def counted(self, *args, **kwargs):
    built.append(type(self).__name__)
    init(self, *args, **kwargs)
nn.Module.__init__ = counted
import timm_wsms
sys.setprofile(None)
loaded = {name.partition(".")[0] for name in sys.modules}
print(json.dumps({"of_timm": of_timm, "of_timm_wsms": calls - of_timm, "built": built, "loaded": sorted(loaded)}))
"""


@pytest.mark.slow
def test_import_is_light():
    """Fewer calls of functions than `import timm`, which do not depend on the machine; no network; nothing heavy.

    The seconds are in benchmarks/results/start_cost.json.
    """
    run = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert "timm_wsms" in found["loaded"]
    assert not {"datasets", "accelerate", "matplotlib", "jsonargparse", "sklearn", "pandas"} & set(found["loaded"])
    assert found["built"] == []  # no network, not one layer
    assert found["of_timm_wsms"] < found["of_timm"]


def test_public_names():
    assert set(timm_wsms.__all__) == {
        "Cascade",
        "UserError",
        "WsmsMeanNet",
        "WsmsNet",
        "fuse",
        "parallel_stages",
        "recalibrate",
        "register",
        "tie_adapters",
        "to_backbone",
        "why_not",
    }
    assert all(getattr(timm_wsms, name).__doc__ for name in timm_wsms.__all__)
    assert issubclass(UserError, ValueError)
