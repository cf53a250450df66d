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


@client(
    "segmentation-models-pytorch",
    "`DeepLabV3Plus`: encoder's maps are timm's; every parameter gets a gradient",
    concat=(UNUSED, AssertionError),
)
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


@client(
    "transformers", "`DetrForObjectDetection` on `out_indices=[4]`: its map is timm's; every parameter gets a gradient"
)
def test_detr(form):
    """It uses the last map alone: with more in `out_indices`, their integration would get no gradient."""
    from transformers import DetrConfig, DetrForObjectDetection, TimmBackboneConfig

    body = TimmBackboneConfig(backbone=FORMS[form], out_indices=[4], use_pretrained_backbone=False)
    small = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    small |= {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 4, "num_labels": 3}
    torch.manual_seed(0)
    model = randomize(DetrForObjectDetection(DetrConfig(backbone_config=body, **small))).eval()
    backbone = model.model.backbone.model  # its norms are frozen ones, which count no batches
    counters = timm.create_model(FORMS[form], features_only=True, out_indices=(4,)).state_dict()
    (expected,) = reference(form, counters | backbone.state_dict(), (4,))
    with torch.no_grad():
        (found,) = backbone(X)
    torch.testing.assert_close(found, expected, **CLOSE)
    out = model(X)
    assert out.logits.shape == (len(X), 4, 4)
    assert without_gradient(model, out.logits.square().mean() + out.pred_boxes.square().mean()) == []


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


NORMAL, OTHERS = images(64, number=8, seed=1), images(64, number=3, seed=2)
LAYERS = ["layer1", "layer2", "layer3"]


def anomaly_model(kind, form, **kwargs):
    """anomalib's model after it has seen the normal images, and its maps of both kinds of images, made by timm."""
    model = randomize(kind(backbone=FORMS[form], layers=LAYERS, pre_trained=False, **kwargs)).train()
    model(NORMAL)
    timms = timm.create_model(FORMS[form], features_only=True, out_indices=(1, 2, 3)).eval()
    timms.load_state_dict(model.feature_extractor.feature_extractor.state_dict())
    with torch.no_grad():
        return model.eval(), timms(NORMAL), timms(OTHERS)


def joined(maps, mode):
    resized = [nn.functional.interpolate(one, maps[0].shape[-2:], mode=mode) for one in maps]
    return torch.cat(resized, 1)


@client("anomalib", "`PadimModel`: scores are those of Gaussians fitted by hand to timm's maps")
def test_padim(form):
    from anomalib.models.image.padim.torch_model import PadimModel

    model, normal, others = anomaly_model(PadimModel, form, n_features=4)
    size = normal[0].shape[-2:]
    normal, others = (joined(maps, "nearest")[:, model.idx].flatten(2).permute(2, 0, 1) for maps in (normal, others))
    mean = normal.mean(1, keepdim=True)
    covariance = (normal - mean).mT @ (normal - mean) / (len(NORMAL) - 1) + (0.01 + 1e-5) * torch.eye(4)
    squared = ((others - mean) @ covariance.inverse() * (others - mean)).sum(2)
    expected = nn.functional.interpolate(squared.sqrt().T.unflatten(1, (1, *size)), 64, mode="bilinear")
    model.fit()
    model.anomaly_map_generator.blur = nn.Identity()
    torch.testing.assert_close(model(OTHERS).anomaly_map, expected, rtol=1e-3, atol=1e-3)


@client("anomalib", "`PatchcoreModel`: scores are the distances, by hand, to the nearest of the normal images' maps")
def test_patchcore(form):
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    model, *maps = anomaly_model(PatchcoreModel, form, num_neighbors=1)
    model.memory_bank = torch.cat(model.embedding_store)  # all of it: which part anomalib would keep is drawn
    pooled = [[nn.functional.avg_pool2d(one, 3, 1, 1) for one in kind] for kind in maps]
    normal, others = (joined(kind, "bilinear").flatten(2).mT for kind in pooled)
    expected = torch.cdist(others, normal.flatten(0, 1)).amin(2).amax(1)
    torch.testing.assert_close(model(OTHERS).pred_score, expected, rtol=1e-3, atol=1e-3)
