"""What users know from timm's models works on networks of stages, or the error says what to do instead."""

import copy
import json

import pytest
import timm
import torch
from timm.data.model_config import resolve_input_data_config
from timm.models import save_for_hf
from torch import nn

import timm_wsms
from tests.helpers.networks import randomize
from timm_wsms import UserError

FORMS = ("wsms_", "wsmean_")
each_prefix = pytest.mark.parametrize("prefix", FORMS)


def make(name, **arguments):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **arguments).eval()


def saved_and_loaded(model, folder, **arguments):
    save_for_hf(model, folder, safe_serialization=True)
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **arguments).eval()


def images(side=64):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@each_prefix
@pytest.mark.parametrize(("backbone", "pool"), [("test_vit", "avg"), ("test_vit", "max"), ("repvit_m0_9", None)])
def test_a_reset_classifier_is_saved_and_loaded(prefix, backbone, pool, tmp_path):
    """The pooling adds a norm to the head; the classifier of RepViT loses its second part."""
    model = make(prefix + backbone)
    model.reset_classifier(3, *([pool] if pool else []))
    x = images(64 if backbone != "test_vit" else 160)
    again = saved_and_loaded(model.eval(), tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    "arguments", [{"init_values": 1e-5}, {"act_layer": "silu", "reg_tokens": 2}, {"norm_layer": "rmsnorm"}]
)
def test_arguments_of_a_backbone_are_saved_and_loaded(arguments, tmp_path):
    model, x = make("wsmean_test_vit", **arguments), images(160)
    again = saved_and_loaded(model, tmp_path)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    assert (make("wsmean_test_vit")(x) - model(x)).abs().max() > 1e-4  # the argument matters


def test_an_argument_that_a_file_may_not_give_goes_to_the_call(tmp_path):
    model, x = make("wsmean_test_resnet", avg_down=True), images()
    with pytest.raises(UserError, match="unknown argument 'avg_down', which only the caller may give; take it out of"):
        saved_and_loaded(model, tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"avg_down": true,', ""))
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, avg_down=True).eval()
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_drop_block_does_not_pad_the_smaller_stages():
    model, plain = make("wsmean_resnet10t", drop_block_rate=0.1), make("wsmean_resnet10t")
    x = images()
    assert [image.shape[-1] for image in model.stage_images(x)] == [64, 32]
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0)


@each_prefix
def test_drop_rate_can_be_read_and_set(prefix):
    model, x = make(f"{prefix}test_resnet", drop_rate=0.25), images()
    assert model.drop_rate == 0.25
    model.drop_rate = 0.9
    assert model.drop_rate == 0.9 and {part.drop_rate for part in model.backbones()} == {0.9}
    features = model.train().forward_features(x)
    share = (model.forward_head(features, pre_logits=True) == 0).float().mean()
    assert 0.8 < share < 0.98
    narrow = make("wsms_test_resnet", residual=False, integration_channels=64)  # its own head
    narrow.drop_rate = 0.9
    assert narrow.head.drop.p == narrow.drop_rate == 0.9


@each_prefix
def test_gradient_checkpointing_can_be_read_and_set_as_an_attribute(prefix):
    model = make(f"{prefix}test_resnet")
    assert model.grad_checkpointing is False
    model.grad_checkpointing = True
    assert all(part.grad_checkpointing for part in model.backbones()) and model.grad_checkpointing
    maps = timm.create_model(f"{prefix}test_resnet", features_only=True)
    maps.set_grad_checkpointing()
    assert all(part.grad_checkpointing for part in maps.model.backbones())


@each_prefix
def test_a_backbone_of_dynamic_image_size_takes_another_size(prefix):
    model = make(f"{prefix}test_vit", img_size=64)
    asked = resolve_input_data_config(model, {"img_size": 96})
    assert (
        asked["input_size"] == resolve_input_data_config(make("test_vit", img_size=64), {"img_size": 96})["input_size"]
    )
    assert asked["input_size"] == (3, 96, 96) and model(images(96)).shape == (2, 5)
    with pytest.raises(ValueError, match="requires"):
        resolve_input_data_config(make(f"{prefix}vit_tiny_patch16_224", img_size=64), {"img_size": 96})


@each_prefix
def test_the_layout_of_the_features_is_stated(prefix):
    model = make(f"{prefix}swin_tiny_patch4_window7_224", img_size=64, window_size=2)
    assert model.output_fmt == make("swin_tiny_patch4_window7_224", img_size=64, window_size=2).output_fmt == "NHWC"
    assert model.forward_features(images()).shape[-1] == model.num_features


@each_prefix
def test_feature_info_names_the_modules_of_stage_1(prefix):
    """`stages` is also what ConvNeXt calls its own blocks."""
    model = make(f"{prefix}test_convnext")
    modules, own = dict(model.named_modules()), dict(model.backbone.named_modules())
    for entry, plain in zip(model.feature_info, make("test_convnext").feature_info, strict=True):
        assert modules[entry["module"]] is own[plain["module"]]


@each_prefix
@pytest.mark.parametrize(
    ("backbone", "name", "remedy"),
    [
        ("test_vit", "num_prefix_tokens", r"stage 1 has it, as model\.backbone\.num_prefix_tokens"),
        ("test_vit", "set_input_size", "create it with img_size, from its saved weights"),
        ("levit_128s", "set_distilled_training", "train the plain backbone with it"),
        ("test_efficientnet", "as_sequential", r"stage 1 has it, as model\.backbone\.as_sequential"),
        ("test_resnet", "set_input_size", "has no attribute 'set_input_size'$"),
    ],
)
def test_what_only_a_backbone_has(prefix, backbone, name, remedy):
    model = make(prefix + backbone)
    with pytest.raises(AttributeError, match=remedy):
        getattr(model, name)
    assert not hasattr(model, name)


@each_prefix
@pytest.mark.parametrize(
    ("backbone", "arguments"),
    [
        ("vit_tiny_patch16_224", {}),
        ("beitv2_base_patch16_224", {"depth": 2, "embed_dim": 48, "num_heads": 3}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 1, 1, 1)}),
        ("eva02_tiny_patch14_224", {"depth": 2, "patch_size": 16}),
    ],
)
def test_saved_weights_for_another_image_size(prefix, backbone, arguments, tmp_path):
    """Stage 1 has the tables that timm's own network gets in the same way; all else stays as it was saved."""
    saved, x = make(prefix + backbone, img_size=64, **arguments), images(96)
    model = saved_and_loaded(saved, tmp_path / "ours", img_size=96)
    plain = make(backbone, img_size=64, **arguments)
    plain.load_state_dict(saved.backbone.state_dict())
    plain = saved_and_loaded(plain, tmp_path / "plain", img_size=96)
    own, before = model.state_dict(), saved.state_dict()
    for key, tensor in plain.state_dict().items():
        torch.testing.assert_close(
            model.backbone.get_parameter(key) if key in dict(plain.named_parameters()) else tensor, tensor
        )
    assert own.keys() == before.keys() and model(x).shape == (2, 5)
    same = [key for key, tensor in own.items() if tensor.shape == before[key].shape]
    assert all(torch.equal(own[key], before[key]) for key in same)
    if backbone.startswith("vit"):
        assert len(own) - len(same) == len(model.backbones())  # one table in each stage


@each_prefix
def test_stages_follow_layers_without_tensors(prefix):
    """Against a network with this activation from the start."""
    model, x = make(f"{prefix}test_resnet"), images()
    before = model(x)
    expected = make(f"{prefix}test_resnet", act_layer="silu")
    expected.load_state_dict(model.state_dict())
    for module in [*model.backbone.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU(inplace=True))
    torch.testing.assert_close(model(x), expected(x), rtol=1e-5, atol=1e-5)
    assert (model(x) - before).abs().max() > 1e-3
    for module in [*model.stages["2"].backbone.modules()]:  # a stage's own is left alone from then on
        for name, child in [*module.named_children()]:
            if isinstance(child, nn.SiLU):
                setattr(module, name, nn.Identity())
    model.backbone.act1 = nn.GELU()
    model(x)
    assert isinstance(model.stages["2"].backbone.act1, nn.Identity)
    assert "3" not in model.stages or isinstance(model.stages["3"].backbone.act1, nn.GELU)


@each_prefix
def test_a_layer_with_parameters_in_place_of_one_without(prefix):
    """Its parameters are shared, and it may be replaced again; each stage has a module of its own."""
    model, x = randomize(make(f"{prefix}test_resnet")).eval(), images()
    before, keys = model(x), {*model.state_dict()}
    model.backbone.layer1[0].act2 = layer = nn.PReLU(init=0.5)
    changed = model(x)
    own = model.stages["2"].backbone.layer1[0].act2
    assert own is not layer and own.weight is layer.weight and (changed - before).abs().max() > 1e-3
    assert {*model.state_dict()} - keys == {"backbone.layer1.0.act2.weight"}
    model.backbone.layer1[0].act2 = nn.ReLU()
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    assert {*model.state_dict()} == keys


def test_a_refused_change_leaves_the_stages_as_they_were():
    model, x = make("wsms_test_resnet"), images()
    before = model(x)
    block = model.backbone.layer1[0]
    kept = {name: getattr(block, name) for name in ("conv1", "bn1", "act1")}
    block.conv1, block.bn1, block.act1 = copy.deepcopy(kept["conv1"]), nn.Identity(), nn.Tanh()
    with pytest.raises(UserError, match=r"undo it|fold them"):
        model(x)
    for name, module in kept.items():
        setattr(block, name, module)
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


def test_a_layer_with_running_statistics_in_place_of_one_without_is_refused():
    model = make("wsmean_test_resnet")
    model.backbone.act1 = nn.BatchNorm2d(24)
    with pytest.raises(UserError, match=r"backbone\.act1 was replaced by a layer with running statistics"):
        model(images())


def test_layers_of_a_sequential_that_moved_are_not_followed():
    model, x = make("wsmean_ghostnet_050"), images()
    blocks = [part.blocks[0][0].ghost1.primary_conv for part in model.backbones()]
    kinds = [type(layer) for layer in blocks[1]]
    blocks[0].insert(2, nn.Dropout(0))
    model(x)
    assert [type(layer) for layer in blocks[1]] == kinds and len(blocks[0]) == len(kinds) + 1
    del blocks[0][2:]
    model(x)
    assert [type(layer) for layer in blocks[1]] == kinds


def test_stages_that_share_nothing_do_not_follow():
    model = make("ms_test_resnet", fusion="mean")
    model.backbone.act1 = nn.GELU()
    model(images())
    assert isinstance(model.stages["2"].backbone.act1, nn.ReLU)


def test_stage_1_of_a_backbone_of_dynamic_image_size_states_its_size():
    model = make("wsmean_test_vit", img_size=64)
    sizes = [timm_wsms.to_backbone(model, stage).pretrained_cfg["input_size"] for stage in (1, 2)]
    assert sizes == [(3, 64, 64), (3, 32, 32)]
    model.pretrained_cfg["input_size"] = (3, 96, 96)  # as a run records that it trained at this size
    assert timm_wsms.to_backbone(model).pretrained_cfg["input_size"] == (3, 96, 96)


@pytest.mark.parametrize(("before", "after"), [(64, (32, 128)), ((64, 128), (128, 64)), ((64, 128), 96)])
def test_saved_weights_for_images_that_are_not_square(before, after, tmp_path):
    """Also where the number of patches stays the same."""
    saved = make("wsmean_vit_tiny_patch16_224", img_size=before)
    plain = make("vit_tiny_patch16_224", img_size=before)
    plain.load_state_dict(saved.backbone.state_dict())
    model, expected = (
        saved_and_loaded(one, tmp_path / name, img_size=after) for name, one in (("ours", saved), ("plain", plain))
    )
    torch.testing.assert_close(model.backbone.pos_embed, expected.pos_embed)


@pytest.mark.parametrize("backbone", ["levit_128s", "mixer_s32_224"])
def test_tables_that_timm_does_not_resample_are_an_error(backbone, tmp_path):
    with pytest.raises(UserError, match="does not load"):
        saved_and_loaded(make(f"wsmean_{backbone}", img_size=64), tmp_path, img_size=(96, 64))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("depth", 1500, "depth = '1500', which no network accepts"),
        ("depth", [200, 200], r"depth = '\[200, 200\]', which no network accepts"),
        ("num_heads", 0, "cannot be built with the model_args of its config.json"),
        ("depth", [2, 2], "cannot be built with the model_args of its config.json"),
        ("mlp_ratio", -4, "cannot be built with the model_args of its config.json"),
        ("act_layer", "system", "act_layer = 'system', which no network accepts"),
    ],
)
def test_arguments_of_a_stranger(name, value, message, tmp_path):
    save_for_hf(make("wsmean_test_vit"), tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"][name] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
