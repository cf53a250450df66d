"""Features of the mean form: the stages' maps at stage 1's size, with their own spatial means, averaged."""

import pytest
import timm
import torch
import torch.nn.functional as F

from tests.helpers.networks import EXACT, images, randomize
from timm_wsms import UserError

torch.set_num_threads(1)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
SWIN = {"img_size": 64, "embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}
NETWORKS = {  # case: backbone, its arguments, pyramid, side of the image, sides to which the stages' images are padded
    "NCHW": ("test_resnet", {}, [1, 0.5, 0.25], 72, None),
    "larger too": ("test_resnet", {}, [2, 1, 0.5], 64, None),
    "convolution behind the maps": ("test_efficientnet", {}, [1, 0.5], 64, None),
    "NHWC": ("test_mambaout", {}, [1, 0.5], 96, None),
    "NHWC, one size": ("swin_tiny_patch4_window7_224", SWIN, [1, 0.5], 64, None),
    "tokens": ("test_vit", {"img_size": 64}, [1, 0.5], 64, None),
    "tokens, padded": ("test_vit", {"img_size": 96}, [1, 0.6], 96, [96, 64]),  # 57 pixels, of 64
}
each = pytest.mark.parametrize("case", NETWORKS)
# average pooling, or a class token, and a linear layer
LINEAR = ("NCHW", "larger too", "convolution behind the maps", "NHWC, one size", "tokens", "tokens, padded")


def network(case, **kwargs):
    name, arguments, pyramid, _, _ = NETWORKS[case]
    torch.manual_seed(0)
    return timm.create_model(f"wsms_{name}", fusion="mean", num_classes=5, pyramid=pyramid, **arguments, **kwargs)


def image_of(case):
    return images(side=NETWORKS[case][3], dtype=torch.float64)


def inputs(model, case):
    """The stages' images, padded as the backbones take them, and how large they are without padding."""
    _, _, _, _, sides = NETWORKS[case]
    made = model.pyramid(image_of(case))
    sides = sides or [image.shape[-1] for image in made]
    padded = [F.pad(image, (0, side - image.shape[-1]) * 2) for image, side in zip(made, sides, strict=True)]
    return padded, [image.shape[-1] for image in made]


def lines(old, new):
    """Bilinear interpolation along a line as a matrix (new, old)."""
    weights = torch.zeros(new, old, dtype=torch.float64)
    for position in range(new):
        at = min(max((position + 0.5) * old / new - 0.5, 0), old - 1)
        low = int(at)
        weights[position, low] += 1 - (at - low)
        weights[position, min(low + 1, old - 1)] += at - low
    return weights


def averaged(maps, padded, sides):
    """By its definition, one channel's map after the other."""
    side = maps[0].shape[-1]
    total = torch.zeros_like(maps[0])
    for x, image, own in zip(maps, padded, sides, strict=True):
        whole = -(-side * image.shape[-1] // own)  # the map of the padded image, of which `side` are of the image
        weights = lines(x.shape[-1], whole)
        fitted = torch.einsum("oh,bchw,pw->bcop", weights, x, weights)[..., :side, :side]
        for sample in range(x.shape[0]):
            for channel in range(x.shape[1]):
                moved = x[sample, channel].sum() / x[0, 0].numel() - fitted[sample, channel].sum() / side**2
                total[sample, channel] += fitted[sample, channel] + moved
    return total / len(maps)


def as_map(features, layout):
    """(B, C, h, w) of the patches, and the tokens before them."""
    if features.ndim == 4:
        return features.permute(0, 3, 1, 2) if layout == "NHWC" else features, None
    side = int((features.shape[1] - 1) ** 0.5)
    return features[:, 1:].transpose(1, 2).unflatten(2, (side, side)), features[:, 0]


@each
@torch.no_grad()
def test_features_are_averaged_as_defined(case):
    model = randomize(network(case)).double().eval()
    padded, sides = inputs(model, case)
    each_stage = [part.forward_features(image) for part, image in zip(model.backbones(), padded, strict=True)]
    for own, stage in zip(model.stage_features(image_of(case)), each_stage, strict=True):
        torch.testing.assert_close(own, stage, **EXACT)
    found = model.forward_features(image_of(case))
    assert found.shape == each_stage[0].shape
    maps, tokens = zip(*(as_map(own, case[:4]) for own in each_stage), strict=True)
    found, token = as_map(found, case[:4])
    torch.testing.assert_close(found, averaged(maps, padded, sides), **CLOSE)
    if token is not None:
        torch.testing.assert_close(token, sum(tokens) / len(tokens), **CLOSE)


@pytest.mark.parametrize("case", LINEAR)
@torch.no_grad()
def test_the_head_behind_the_features_gives_the_mean_of_the_logits(case):
    model, x = randomize(network(case)).double().eval(), image_of(case)
    logits = model(x)
    assert logits.std() > 1e-3
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), logits, **CLOSE)
    heads = [part.forward_head(own) for part, own in zip(model.backbones(), model.stage_features(x), strict=True)]
    torch.testing.assert_close(logits, torch.stack(heads).mean(0), **EXACT)


@each
@torch.no_grad()
def test_maps_of_all_levels(case):
    model, x = randomize(network(case)).double().eval(), image_of(case)
    padded, sides = inputs(model, case)
    features, found = model.forward_intermediates(x)
    torch.testing.assert_close(features, model.forward_features(x), **EXACT)
    parts = zip(model.backbones(), padded, strict=True)
    given = [part.forward_intermediates(image, intermediates_only=True) for part, image in parts]
    assert len(found) == len(model.feature_info)
    for level, entry, *maps in zip(found, model.feature_info, *given, strict=True):
        assert level.shape[1] == entry["num_chs"]
        torch.testing.assert_close(level, averaged(maps, padded, sides), **CLOSE)
    (nhwc,) = model.forward_intermediates(x, indices=1, output_fmt="NHWC", intermediates_only=True)
    torch.testing.assert_close(nhwc.permute(0, 3, 1, 2), found[-1], **EXACT)
    (early,) = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(early, found[1], **EXACT)


@pytest.mark.parametrize("out_indices", [None, (1, 3), (-1,)])
@each
def test_features_only(case, out_indices):
    """The maps that `forward_intermediates` gives, from no more than they need: every parameter gets a gradient."""
    whole = network(case).double().eval()
    choice = {} if out_indices is None else {"out_indices": out_indices}
    model = randomize(network(case, features_only=True, **choice)).double().eval()
    plain = timm.create_model(NETWORKS[case][0], features_only=True, **NETWORKS[case][1], **choice)
    assert model.feature_info.channels() == plain.feature_info.channels()
    values = {key.removeprefix("model."): value for key, value in model.state_dict().items()}
    whole.load_state_dict(values, strict=False)
    found = model(image_of(case))
    wanted = whole.forward_intermediates(image_of(case), model.feature_info.out_indices, intermediates_only=True)
    for map_, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(map_, expected, **CLOSE)
    sum((map_ * torch.randn_like(map_)).sum() for map_ in found).backward()
    for key, parameter in model.named_parameters():
        alone = "layers.3" in key  # attention among one token: its gradients are zeros
        assert parameter.grad is not None and (alone or parameter.grad.any()), key


@pytest.mark.parametrize("name", ["efficientvim_m1", "coat_lite_tiny", "pit_ti_224"])
@torch.no_grad()
def test_several_features_and_features_without_places(name):
    """Each element is averaged; behind each element's mean over places the heads are linear (EfficientViM)."""
    torch.manual_seed(0)
    model = randomize(timm.create_model(f"wsms_{name}", fusion="mean", stages=2, num_classes=5)).double().eval()
    x = images(224, dtype=torch.float64)
    features = model.forward_features(x)
    for own, plain in zip(features, model.backbone.forward_features(x), strict=True):
        assert own.shape == plain.shape and not torch.equal(own, plain)
    logits = model.forward_head(features)
    if name == "efficientvim_m1":
        torch.testing.assert_close(logits, model(x), **CLOSE)
    assert logits.shape == (2, 5)


@torch.no_grad()
def test_without_pooling_the_network_gives_its_features():
    model, x = randomize(network("NCHW")).double().eval(), image_of("NCHW")
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), model.forward_features(x), **EXACT)


@torch.no_grad()
def test_only_images_that_are_too_small_are_called_so():
    model = timm.create_model("wsms_test_convnext", fusion="mean").eval()
    with pytest.raises(UserError, match=r"16×16 pixels, 0\.25 of the image's size, are too few for the backbone"):
        model(images(64))
    block = model.stages["3"].backbone.stages[1]
    hook = block.register_forward_pre_hook(lambda module, args: (args[0][:, :5],))  # as after a wrong pruning
    for side in (64, 128, 256):
        with pytest.raises(RuntimeError) as caught:
            model(images(side))
        assert not isinstance(caught.value, UserError) and "24" in str(caught.value)
    hook.remove()
    modes = {name: module.training for name, module in model.train().named_modules()}
    with pytest.raises(UserError, match="too few"):
        model(images(64))
    assert {name: module.training for name, module in model.named_modules()} == modes
