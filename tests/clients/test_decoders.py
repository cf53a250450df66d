"""Packages that build a timm model from its name and use its features: segmentation, detection, towers, wrappers."""

import timm
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import FeaturePyramidNetwork

from tests.helpers.clients import CLOSE, FORMS, build, client, run
from tests.helpers.networks import images, randomize

X = images(64)


def reference(form, state, out_indices=None, **kwargs):
    """timm's own feature maps, of given weights."""
    model = timm.create_model(FORMS[form], features_only=True, out_indices=out_indices, **kwargs).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        return model(X)


def check_maps(found, expected):
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def without_gradient(model, loss):
    """Names of the parameters that a loss does not reach, for which DDP needs `find_unused_parameters`."""
    model.zero_grad()
    loss.backward()
    return [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]


def segment(model, x=X):
    """Check what a segmentation network computes from its encoder's maps."""
    with torch.no_grad():
        maps = model.encoder(x)
        expected = model.segmentation_head(model.decoder(maps))
        torch.testing.assert_close(model(x), expected, **CLOSE)
    assert model(x).shape == (2, 2, 64, 64)
    assert without_gradient(model.train(), model(x).square().mean()) == []


@client("segmentation-models-pytorch", "`Unet`: encoder's maps are timm's; every parameter gets a gradient")
def test_unet(form):
    import segmentation_models_pytorch as smp

    model = randomize(smp.Unet(f"tu-{FORMS[form]}", encoder_weights=None, classes=2)).eval()
    with torch.no_grad():
        found = model.encoder(X)
    check_maps(found[1:], reference(form, model.encoder.model.state_dict()))
    segment(model)


UNUSED = (
    "its decoder uses two of the maps, and the integration of the others gets no gradient: DDP needs "
    "`find_unused_parameters`"
)


@client("segmentation-models-pytorch", "`DeepLabV3Plus`: the same", concat=(UNUSED, AssertionError))
def test_deeplab(form):
    import segmentation_models_pytorch as smp

    model = randomize(smp.DeepLabV3Plus(f"tu-{FORMS[form]}", encoder_weights=None, classes=2)).eval()
    with torch.no_grad():
        found = model.encoder(X)
    check_maps(found[1:], reference(form, model.encoder.model.state_dict(), output_stride=16))
    segment(model)


class Pyramid(nn.Module):
    """torchvision's FPN over timm's maps, as its detectors take it."""

    def __init__(self, form):
        super().__init__()
        arguments = {} if form != "concat" else {"integrated_indices": (1, 2, 3)}
        self.body = timm.create_model(FORMS[form], features_only=True, out_indices=(1, 2, 3), **arguments)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), 16)
        self.out_channels = 16

    def forward(self, x):
        return self.fpn({str(index): one for index, one in enumerate(self.body(x))})


@client(
    "torchvision", "`FasterRCNN` with an FPN over three maps: loss and gradients; every parameter of the body gets one"
)
def test_detection(form):
    from torchvision.models.detection.rpn import AnchorGenerator

    torch.manual_seed(0)
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((0.5, 1.0, 2.0),) * 3)
    body = randomize(Pyramid(form)).eval()
    model = FasterRCNN(body, 3, rpn_anchor_generator=anchors, min_size=64, max_size=64)
    model.roi_heads.box_roi_pool.featmap_names = ["0", "1", "2"]
    targets = [{"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([1])}] * 2
    losses = model.train()(list(X), targets)
    loss = sum(losses.values())
    assert torch.isfinite(loss) and without_gradient(model, loss) == []
    seen = []
    body.register_forward_hook(lambda module, given, maps: seen.append((given[0], maps)))
    with torch.no_grad():
        model.eval()(list(X))
    given, found = seen[0]
    expected = body.fpn(dict(zip("012", body.body(given), strict=True)))
    check_maps([*found.values()], [*expected.values()])


@client("open-clip-torch", "timm image tower with a linear projection: its output; gradients; `lock`")
def test_open_clip(form):
    from open_clip.timm_model import TimmModel

    tower = randomize(TimmModel(FORMS[form], 8, image_size=64)).eval()
    trunk = timm.create_model(FORMS[form], num_classes=0).eval()
    trunk.load_state_dict(tower.trunk.state_dict())
    torch.testing.assert_close(run(tower, X), run(trunk, X) @ tower.head.proj.weight.T, **CLOSE)
    assert without_gradient(tower, tower(X).square().mean()) == []
    tower.lock(unlocked_groups=1)
    free = {name for name, one in tower.trunk.named_parameters() if one.requires_grad}
    assert free and len(free) < len([*tower.trunk.parameters()])


@client("transformers", "`TimmBackbone`: feature maps are timm's")
def test_timm_backbone(form):
    from transformers import TimmBackbone, TimmBackboneConfig

    config = TimmBackboneConfig(backbone=FORMS[form], out_indices=[1, 2, 3])
    model = randomize(TimmBackbone(config)).eval()
    with torch.no_grad():
        found = model(X).feature_maps
    check_maps([*found], reference(form, model._backbone.state_dict(), (1, 2, 3)))


@client("transformers", "`TimmWrapperForImageClassification`: logits, loss, saved and loaded")
def test_timm_wrapper(form, tmp_path):
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    config = TimmWrapperConfig(architecture=FORMS[form], num_labels=5)
    model = randomize(TimmWrapperForImageClassification(config)).eval()
    expected = build(form, seed=1)
    expected.load_state_dict(model.timm_model.state_dict())
    labels = torch.tensor([0, 3])
    found = model(pixel_values=X, labels=labels)
    torch.testing.assert_close(found.logits, expected(X), **CLOSE)
    torch.testing.assert_close(found.loss, nn.functional.cross_entropy(expected(X), labels), **CLOSE)
    model.save_pretrained(tmp_path)
    again = TimmWrapperForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(pixel_values=X).logits, found.logits, **CLOSE)


@client("fastai", "`create_timm_model`: body's features are timm's; every parameter gets a gradient; `split`")
def test_fastai(form):
    from fastai.vision.learner import create_timm_model, default_split

    model = randomize(create_timm_model(FORMS[form], 5, pretrained=False)[0]).eval()
    expected = timm.create_model(FORMS[form], num_classes=0, global_pool="").eval()
    expected.load_state_dict(model[0].model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model[0](X), expected.forward_features(X), **CLOSE)
    assert without_gradient(model, model(X).square().mean()) == []
    groups = [{id(one) for one in group} for group in default_split(model)]
    assert groups[0] == {id(one) for one in model[0].parameters()}
