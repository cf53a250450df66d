"""One stage as a plain timm model: bit for bit the stage's logits, and nothing of this package in it."""

import copy

import pytest
import timm
import torch

import timm_wsms
from tests.helpers.checkpoints import checkpoint_of, start, trained
from tests.helpers.networks import EXACT, images, randomize, tensors
from tests.helpers.tiers import slow_except
from timm_wsms import UserError, WsmsMeanNet, to_backbone

torch.set_num_threads(1)
SWIN = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 4, "drop_path_rate": 0.0}
NETWORKS = {  # case: backbone, its arguments, pyramid, side of the images, sides that each stage's backbone takes
    "CNN": ("test_resnet", {}, [1, 0.5, 0.25], 64, (64, 32, 16)),
    "statistics of its own": ("test_resnet", {"unshared_norms": "statistics"}, [2, 1, 0.7], 62, (62, 124, 43)),
    "nothing shared": ("test_resnet", {"share_weights": False}, [1, 0.5], 64, (64, 32)),
    "head with layers": ("mobilenetv3_small_050", {}, [1, 0.5], 64, (64, 32)),
    "pre-activation": ("densenet100_k24_cifar", {"depth": 10}, [1, 0.5], 32, (32, 16)),
    "layer norms": ("test_convnext", {"unshared_norms": "all"}, [1, 0.5], 64, (64, 32)),
    "NHWC": ("test_mambaout", {}, [1, 0.5], 64, (64, 32)),
    "NHWC, windows": ("swin_tiny_patch4_window7_224", {"img_size": 64, **SWIN}, [1, 0.5, 2], 64, (64, 32, 128)),
    "tokens": ("test_vit", {"img_size": 64}, [1, 0.5], 64, (64, 32)),
    "tokens, padded": ("test_vit", {"img_size": 96}, [1.5, 1, 0.6], 96, (96, 144, 64)),  # 57.6 pixels are 57, of 64
    "fixed size, norms in the head": (
        *("levit_128s", {"embed_dim": (16, 32, 48), "depth": (1, 1, 1), "unshared_norms": "statistics"}),
        *([1, 0.5], 224, (224, 112)),
    ),
    "padded CNN": ("dla46_c", {}, [1, 0.6], 64, (64, 64)),  # 38 pixels, of 64
    "gray": ("test_resnet", {"in_chans": 1}, [1, 0.5], 64, (64, 32)),
}


def network(case):
    name, arguments, pyramid, _, _ = NETWORKS[case]
    torch.manual_seed(0)
    model = timm.create_model(f"wsms_{name}", fusion="mean", num_classes=5, pyramid=pyramid, **arguments)
    return randomize(model).eval()


def image_of(case):
    return images(NETWORKS[case][3], channels=NETWORKS[case][1].get("in_chans", 3))


@pytest.mark.parametrize(
    "case", slow_except(NETWORKS, "CNN", "statistics of its own", "pre-activation", "tokens", "NHWC")
)
@torch.no_grad()
def test_every_stage_computes_its_logits_bit_for_bit_without_the_network(case):
    """What a plain model built by timm's own name computes from the state dict, too."""
    name, arguments, _, _, sides = NETWORKS[case]
    model, x = network(case), image_of(case)
    expected = model.stage_logits(x)
    assert len({tuple(one.flatten().tolist()) for one in expected}) == len(sides) and expected.isfinite().all()
    plains = [to_backbone(model, stage) for stage in range(1, len(sides) + 1)]
    seen = model.stage_images(x)
    for tensor in tensors(model).values():
        tensor.zero_()  # nothing is shared with the network
    arguments = {key: value for key, value in arguments.items() if key not in ("unshared_norms", "share_weights")}
    for plain, image, logits, side in zip(plains, seen, expected, sides, strict=True):
        assert image.shape[-2:] == (side, side)
        torch.testing.assert_close(plain(image), logits, **EXACT)
        if "img_size" in arguments or name.startswith("levit"):
            arguments["img_size"] = side
        anew = timm.create_model(name, num_classes=5, **arguments).eval()
        anew.load_state_dict(plain.state_dict())  # strict
        torch.testing.assert_close(anew(image), logits, **EXACT)


@pytest.mark.parametrize("case", ["CNN", "statistics of its own", "tokens, padded", "nothing shared"])
def test_nothing_of_this_package_is_in_it(case):
    model = network(case)
    model.set_grad_checkpointing(True)  # gives the norms hooks
    for stage in range(1, len(model.factors()) + 1):
        plain = to_backbone(model, stage)
        for module in plain.modules():
            parts = [module, module._non_persistent_buffers_set, *module._forward_hooks.values()]
            parts += [*module._forward_pre_hooks.values()]
            kinds = {getattr(part, "__module__", None) or type(part).__module__ for part in parts}
            assert not [kind for kind in kinds if kind.startswith("timm_wsms")]
            # torch.distributed.checkpoint asks this set which tensors to leave out
            assert not any(name in module._non_persistent_buffers_set for name in module._parameters)
    if case == "CNN":
        assert any(module._forward_hooks for module in model.modules())  # the network keeps its own


def test_what_its_config_says():
    model = timm.create_model("wsmean_test_resnet", num_classes=5)
    plain = to_backbone(model)
    source = timm.get_pretrained_cfg("test_resnet").to_dict()
    assert plain.pretrained_cfg is plain.default_cfg
    expected = {key: source[key] for key in ("mean", "std", "interpolation", "crop_pct", "first_conv", "classifier")}
    expected |= {"architecture": "test_resnet", "num_classes": 5, "input_size": (3, 160, 160), "pool_size": (5, 5)}
    assert {key: plain.pretrained_cfg[key] for key in expected} == expected
    assert not {"url", "file", "hf_hub_id", "source"} & plain.pretrained_cfg.keys()  # they hold other weights
    assert model.pretrained_cfg["architecture"] == "wsmean_test_resnet" and model.pretrained_cfg["hf_hub_id"]
    half = to_backbone(model, 2).pretrained_cfg
    assert (half["input_size"], half["pool_size"], half["crop_pct"]) == ((3, 80, 80), None, source["crop_pct"])
    assert not {"test_input_size", "test_crop_pct"} & half.keys()


@pytest.mark.parametrize("stage, side", [(1, 48), (2, 24), (3, 67)])
def test_of_a_checkpoint_folder_it_keeps_what_the_images_were_like(stage, side, tmp_path):
    """And it is itself written and read by timm, label names and all."""
    source = timm.create_model("wsms_test_resnet", num_classes=3, fusion="mean", pyramid=[1, 0.5, 2**0.5])
    data = {"input_size": (3, 48, 48), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.7}
    data |= {"interpolation": "bilinear", "crop_mode": "squash"}
    names = ["a", "b", "c"]
    timm.models.save_for_hf(
        randomize(source),
        tmp_path / "net",
        model_config={"label_names": names},
        data_config=data,
        safe_serialization=True,
    )
    model = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).eval()
    plain = to_backbone(model, stage)
    timm.models.save_for_hf(plain, tmp_path / "plain", safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'plain'}", pretrained=True).eval()
    for one in (plain, loaded):
        said = {key: tuple(value) if isinstance(value, list) else value for key, value in one.pretrained_cfg.items()}
        assert {key: said[key] for key in data} == {**data, "input_size": (3, side, side)}
        assert timm.data.resolve_model_data_config(one)["input_size"] == (3, side, side)
        assert list(one.pretrained_cfg["label_names"]) == names and one.pretrained_cfg["num_classes"] == 3
    x = images(48)
    torch.testing.assert_close(loaded(model.stage_images(x)[stage - 1]), model.stage_logits(x)[stage - 1], **EXACT)
    model.reset_classifier(7)
    other = to_backbone(model, stage).pretrained_cfg
    assert other["num_classes"] == 7 and "label_names" not in other


@pytest.mark.parametrize("stage, side", [(1, 96), (2, 48)])
def test_where_parameters_depend_on_the_size_it_is_that_which_the_stage_was_built_for(stage, side):
    """Of a backbone that takes other sizes too, so that timm would recommend its checkpoint's 160."""
    plain = to_backbone(timm.create_model("wsmean_test_vit", img_size=96), stage)
    assert (
        plain.pretrained_cfg["input_size"]
        == timm.data.resolve_model_data_config(plain)["input_size"]
        == (3, side, side)
    )


def test_the_mode_and_the_precision_stay():
    model = timm.create_model("wsmean_test_resnet").to(torch.bfloat16).train()
    plain = to_backbone(model)
    assert plain.training and {parameter.dtype for parameter in plain.parameters()} == {torch.bfloat16}


def test_of_layers_that_were_replaced_since_the_stages_take_the_new_ones():
    model, x = network("CNN"), image_of("CNN")
    model.backbone.layer1[0].conv1 = torch.nn.Conv2d(32, 32, 3, padding=1)
    with torch.no_grad():
        torch.testing.assert_close(to_backbone(model, 2)(model.stage_images(x)[1]), model.stage_logits(x)[1], **EXACT)


def test_a_network_that_the_registry_did_not_build():
    def build(**kwargs):
        return timm.create_model("test_vit", num_classes=5, img_size=kwargs.get("img_size", 96))

    model = WsmsMeanNet(build, pyramid=[1, 0.5], img_size=96).eval()
    plain = to_backbone(model, 2)
    assert plain.pretrained_cfg["input_size"] == (3, 48, 48) and plain.pretrained_cfg["architecture"] == "test_vit"


# ---- the concatenating form


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_mambaout"])
@torch.no_grad()
def test_of_the_concatenating_form_only_without_the_integrated_map(name, tmp_path):
    model = start(f"wsms_{name}", checkpoint_of(trained(name), tmp_path)).eval()  # γ is 0
    x = images(160)
    torch.testing.assert_close(to_backbone(model)(x), model(x), **EXACT)
    model.integration.gamma.fill_(0.1)
    with pytest.raises(UserError, match=r"γ is not 0.*alone gives other logits; give drop_integration=True"):
        to_backbone(model)
    plain = to_backbone(model, drop_integration=True)
    assert (plain(x) - model(x)).abs().max() > 1e-4
    torch.testing.assert_close(plain(x), model.backbone(x), **EXACT)


def test_one_stage_is_the_backbone():
    model = timm.create_model("wsms_test_resnet", stages=1).eval()
    with torch.no_grad():
        torch.testing.assert_close(to_backbone(model)(images()), model(images()), **EXACT)


@pytest.mark.parametrize(
    "build, stage, words",
    [
        (lambda: timm.create_model("test_resnet"), 1, "a network that timm_wsms built, not ResNet"),
        (
            lambda: torch.nn.Sequential(timm.create_model("wsmean_test_resnet")),
            1,
            "not Sequential; give it without wrap",
        ),
        (lambda: timm.create_model("wsmean_test_resnet", features_only=True), 1, "not built with features_only=True"),
        (lambda: timm.create_model("wsmean_test_resnet"), 3, "stage must be 1 to 2, the stages of this network; not 3"),
        (lambda: timm.create_model("wsmean_test_resnet"), 0, "stage must be 1 to 2"),
        (lambda: timm.create_model("wsms_test_resnet"), 2, "has no head; take stage 1, or train with fusion='mean'"),
        (lambda: timm.create_model("wsms_resnet20_cifar"), 1, "stage 1 has none of its own; train with fusion='mean'"),
        (
            lambda: timm.create_model("wsms_test_resnet", residual=False),
            *(1, "the classifier was trained on the integrated map alone"),
        ),
    ],
)
@pytest.mark.parametrize("drop", [True, False])
def test_what_is_no_plain_backbone_is_refused(build, stage, words, drop):
    with pytest.raises(UserError) as caught:
        timm_wsms.to_backbone(build(), stage, drop_integration=drop)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_network_is_left_as_it_is():
    model = network("tokens")
    before, config = copy.deepcopy(model.state_dict()), copy.deepcopy(model.pretrained_cfg)
    plain = to_backbone(model, 2)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    plain.pretrained_cfg["mean"] = ()
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before) and model.pretrained_cfg == config
    assert model.backbone.pretrained_cfg["mean"] and model.stages["2"].backbone.pretrained_cfg["mean"]
