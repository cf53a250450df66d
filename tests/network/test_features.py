"""`features_only=True`: the maps of every level, against those of timm's plain backbones."""

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import timm_wsms
from tests.helpers.networks import images, randomize
from tests.helpers.tiers import slow_except
from timm_wsms.network.features import WsmsFeatures

torch.set_num_threads(1)
SWIN = {"img_size": 64, "embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}
BACKBONES = {  # name: pixels, arguments
    "test_resnet": (64, {}),
    "test_efficientnet": (64, {}),  # a convolution between the last map and the features
    "mobilenetv3_small_050": (64, {}),
    "test_convnext": (64, {}),
    "densenet121": (128, {}),  # stages end in a norm of their own
    "test_nfnet": (64, {}),
    "regnetx_002": (64, {}),
    "test_mambaout": (64, {}),  # (B, h, w, C)
    "swin_tiny_patch4_window7_224": (64, SWIN),  # one size, (B, h, w, C)
    "test_maxvit": (160, {}),  # one size
    "test_vit": (160, {}),  # one resolution
    "pit_ti_224": (224, {}),  # features without patches
}
QUICK = ("test_resnet", "test_efficientnet", "test_convnext", "test_nfnet", "test_mambaout", "test_vit")
each = pytest.mark.parametrize("name", slow_except(BACKBONES, *QUICK, "swin_tiny_patch4_window7_224"))


def image(name, number=2):
    return images(BACKBONES[name][0], number)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A file with weights of a plain backbone, and the arguments that load it."""
    folder, made = tmp_path_factory.mktemp("weights"), {}

    def make(name):
        if name not in made:
            torch.manual_seed(0)
            state = randomize(timm.create_model(name, **BACKBONES[name][1])).state_dict()
            save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / f"{name}.safetensors")
            overlay = {"file": str(folder / f"{name}.safetensors")}
            made[name] = {"pretrained": True, "pretrained_cfg_overlay": overlay, **BACKBONES[name][1]}
        return made[name]

    return make


def plain(name, arguments, **kwargs):
    """timm's own feature maps."""
    return timm.create_model(name, features_only=True, **arguments, **kwargs).eval()


def staged(name, arguments, **kwargs):
    return timm.create_model(f"wsms_{name}", features_only=True, **arguments, **kwargs).eval()


def maps_of(model, x):
    """(B, C, h, w) each; timm's list of maps leaves them in the backbone's layout."""
    with torch.no_grad():
        found = model(x)
    layout = getattr(model, "output_fmt", "NCHW")
    nhwc = getattr(layout, "value", layout) == "NHWC"
    return [x.permute(0, 3, 1, 2) if nhwc else x for x in found]


@each
def test_without_integration_the_maps_are_the_backbones(name, checkpoint):
    """From a file of the backbone's weights γ starts from zero, so nothing is added yet."""
    own, model = plain(name, checkpoint(name)), staged(name, checkpoint(name))
    assert isinstance(model, WsmsFeatures)
    assert model.feature_info.channels() == own.feature_info.channels()
    assert model.feature_info.reduction() == own.feature_info.reduction()
    x = image(name)
    expected = maps_of(own, x)
    with torch.no_grad():
        found = model(x)
    for map_, other, entry in zip(found, expected, model.feature_info.get_dicts(), strict=True):
        side = -(-x.shape[-1] // entry["reduction"])
        assert map_.shape[:2] == (2, entry["num_chs"]) and (name == "pit_ti_224" or map_.shape[2:] == (side, side))
        torch.testing.assert_close(map_, other, rtol=0, atol=0)


@each
def test_a_level_changes_its_own_map_alone(name, checkpoint):
    model, x = staged(name, checkpoint(name)), image(name, 1)
    before = maps_of(model, x)
    layers = {int(position): layer for position, layer in model.model.feature_pyramid.items()}
    if model.model.integration is not None:
        layers[len(model.model.feature_info) - 1] = model.model.integration
    assert len(layers) >= 2
    for position, layer in layers.items():
        assert not layer.gamma.any()
        layer.gamma.data.fill_(1)
        after = maps_of(model, x)
        layer.gamma.data.zero_()
        for index, old, new in zip(model.feature_info.out_indices, before, after, strict=True):
            assert torch.equal(old, new) == (index != position), (index, position)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "mobilenetv3_small_050"])
def test_a_level_holds_the_plain_backbones_maps_of_the_smaller_images(name, checkpoint):
    """Just loaded, the stages' norms are the backbone's, so every stage is the plain backbone up to where it ends."""
    own, model, x = plain(name, checkpoint(name)), staged(name, checkpoint(name)), images(128)
    half = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    quarter = (half[..., ::2, ::2] + half[..., 1::2, ::2] + half[..., ::2, 1::2] + half[..., 1::2, 1::2]) / 4
    first, second, third = (maps_of(own, pyramid) for pyramid in (x, half, quarter))
    layers = randomize(model.model.feature_pyramid)
    found = maps_of(model, x)
    compared = 0
    last = len(first) - 1
    for level in range(len(first)):
        parts = [first[level], *second[level - 1 : level], *(third[level - 2 : level - 1] if level > 1 else [])]
        if len(parts) == 1:
            torch.testing.assert_close(found[level], first[level], rtol=0, atol=0)
        elif str(level) in layers:
            compared += 1
            layer = layers[str(level)]
            mixed = torch.einsum("oc,bchw->bohw", layer.conv.weight[:, :, 0, 0], torch.cat(parts, 1))
            norm = layer.norm
            mixed = F.relu(F.batch_norm(mixed, norm.running_mean, norm.running_var, norm.weight, norm.bias))
            expected = first[level] + layer.gamma[:, None, None] * mixed
            torch.testing.assert_close(found[level], expected, rtol=1e-4, atol=1e-4)
        else:
            assert level == last  # the integration layer's, whose γ is zero
    assert compared >= 2


@pytest.mark.parametrize(
    "name", slow_except(["test_resnet", "test_vit", "swin_tiny_patch4_window7_224"], "test_resnet")
)
@pytest.mark.parametrize("out_indices", [(1, 3), (-1,), 2, (0,)])
def test_some_of_the_levels(name, out_indices):
    """The same maps as all levels at once give, from less."""
    arguments = BACKBONES[name][1]
    whole = staged(name, arguments, out_indices=len(timm.create_model(name, **arguments).feature_info))
    some = staged(name, arguments, out_indices=out_indices)
    randomize(whole)
    values = dict([*whole.named_parameters(remove_duplicate=False), *whole.named_buffers(remove_duplicate=False)])
    own = dict([*some.named_parameters(remove_duplicate=False), *some.named_buffers(remove_duplicate=False)])
    assert own.keys() < values.keys()
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(values[key])
    depth = len(whole.feature_info.out_indices)
    wanted = range(depth)[-out_indices:] if isinstance(out_indices, int) else [i % depth for i in out_indices]
    assert list(some.feature_info.out_indices) == list(wanted)
    expected = maps_of(whole, image(name))
    found = maps_of(some, image(name))
    for index, map_ in zip(wanted, found, strict=True):
        torch.testing.assert_close(map_, expected[index])
    check_gradients(some, image(name))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("used", [(1, -1), (-1,), (0, 2)])
def test_a_decoder_that_uses_some_of_the_maps_that_it_asks_for(name, used):
    """As segmentation_models.pytorch and DETR do: what is named gets its integration, and nothing lacks a gradient."""
    arguments = BACKBONES[name][1] | {"out_indices": len(timm.create_model(name).feature_info)}
    torch.manual_seed(0)
    model = randomize(staged(name, arguments, integrated_indices=used))
    maps = model(image(name))
    used = {index % len(maps) for index in used}
    plain = model.model.backbone.forward_intermediates(image(name), intermediates_only=True)
    stages = [{*stage.taps} for stage in model.model.stages.values()]
    for position, (map_, own) in enumerate(zip(maps, plain, strict=True)):
        integrated = position in used and any(position in taps for taps in stages)
        assert torch.equal(map_, own) != integrated, position
    # every block of the backbone lies on the way to the last map
    sum(maps[position].square().sum() for position in used | {len(maps) - 1}).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key


def test_integrated_indices_without_features():
    with pytest.raises(timm_wsms.UserError, match="integrated_indices belongs to features_only=True"):
        timm.create_model("wsms_test_resnet", integrated_indices=[1])


def check_gradients(model, x):
    sum(map_.square().sum() for map_ in model(x)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


@each
def test_every_parameter_is_used_and_stands_in_the_state_dict_once(name):
    torch.manual_seed(0)
    model = randomize(staged(name, BACKBONES[name][1]))
    state = model.state_dict()
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)
    assert {id(tensor) for tensor in model.parameters()} <= {
        id(tensor) for key, tensor in model.state_dict(keep_vars=True).items()
    }
    check_gradients(model, image(name))


@pytest.mark.parametrize(
    "name, expected",
    slow_except(
        [
            ("test_resnet", (0, 1, 2, 3, 4)),
            ("test_vit", (3, 4, 5)),  # one resolution: the last three blocks
            ("tresnet_m", (1, 2, 3, 4)),
            ("csatv2", (1, 2, 3, 4)),
            ("sequencer2d_s", (0, 1, 2)),
            ("selecsls42", (0, 1, 2, 3, 4)),
        ],
        *("test_resnet", "test_vit"),
    ),
)
def test_levels_are_those_that_timm_gives_for_the_backbone(name, expected):
    with torch.device("meta"):
        found, own = (timm.create_model(key, features_only=True).feature_info for key in (f"wsms_{name}", name))
    assert tuple(found.out_indices) == tuple(own.out_indices) == expected
    assert (found.channels(), found.reduction()) == (own.channels(), own.reduction())


def test_from_a_networks_own_checkpoint(tmp_path):
    """Its integration layer comes with it; the layers of the other levels are new, and silent."""
    torch.manual_seed(0)
    network = randomize(timm.create_model("wsms_test_resnet")).eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    overlay = {"file": str(tmp_path / "model.safetensors")}
    model = staged("test_resnet", {"pretrained": True, "pretrained_cfg_overlay": overlay})
    x = image("test_resnet")
    with torch.no_grad():
        found = model(x)
        expected = network.backbone.forward_intermediates(x, intermediates_only=True)
        expected[-1] = network.forward_features(x)
    for map_, other in zip(found, expected, strict=True):
        torch.testing.assert_close(map_, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "swin_tiny_patch4_window7_224"])
def test_intermediates_of_a_classifier(name):
    """Without `features_only` the last map alone is integrated; the features are those of `forward_features`."""
    torch.manual_seed(0)
    model = randomize(timm.create_model(f"wsms_{name}", **BACKBONES[name][1])).eval()
    x = image(name)
    with torch.no_grad():
        features, found = model.forward_intermediates(x)
        torch.testing.assert_close(features, model.forward_features(x), rtol=0, atol=0)
        own = model.backbone.forward_intermediates(x, intermediates_only=True)
        for map_, other in zip(found[:-1], own[:-1], strict=True):
            torch.testing.assert_close(map_, other, rtol=0, atol=0)
        added = features - model.backbone.forward_features(x)
        if name == "test_vit":
            added = added[:, 1:].transpose(1, 2).unflatten(2, (10, 10))
        elif "swin" in name:
            added = added.permute(0, 3, 1, 2)
        assert added.abs().max() > 1e-3
        torch.testing.assert_close(found[-1] - own[-1], added, rtol=1e-3, atol=1e-3)
        nhwc = model.forward_intermediates(x, indices=1, output_fmt="NHWC", intermediates_only=True)
        torch.testing.assert_close(nhwc[0].permute(0, 3, 1, 2), found[-1], rtol=0, atol=0)


@pytest.mark.parametrize("name", slow_except(["mobilenetv1_100h", "regnetv_040", "test_resnet"], "test_resnet"))
def test_pruned_to_its_last_map_a_network_gives_it_still(name):
    """Also where `forward_features` has another layer, as wide, behind that map (a convolution, an activation)."""
    torch.manual_seed(0)
    model = timm.create_model(f"wsms_{name}").eval()
    x = torch.randn(1, 3, 64, 64)
    last = len(model.feature_info) - 1
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices=[last], intermediates_only=True)[0]
        model.prune_intermediate_layers([last])
        found = model.forward_intermediates(x, indices=[last], intermediates_only=True)[0]
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
