"""Attribution, test-time augmentation and pruning of channels."""

import torch

from tests.helpers.clients import CLOSE, backbone_of, build, client, run
from tests.helpers.networks import images

X, TARGETS = images(64), [1, 3]


def grad_cam(model, layer):
    """Of the map that a layer gives in its only call: its channels weighted by their mean gradients."""
    seen = []
    hook = layer.register_forward_hook(lambda *values: seen.append(values[2]))
    logits = model(X)
    hook.remove()
    assert len(seen) == 1
    (gradient,) = torch.autograd.grad(logits[range(2), TARGETS].sum(), seen[0])
    return (gradient.mean((2, 3), keepdim=True) * seen[0]).sum(1).relu().detach()


@client("grad-cam", "`GradCAM` on stage 1's third level: the map computed by hand")
def test_grad_cam(form):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = build(form)
    layer = backbone_of(model).layer3
    with GradCAM(model, [layer]) as cam:
        cam(X, [ClassifierOutputTarget(target) for target in TARGETS])
        activations, gradients = cam.activations_and_grads.activations[0], cam.activations_and_grads.gradients[0]
    found = (gradients.mean((2, 3), keepdim=True) * activations).sum(1).relu()
    expected = grad_cam(model, layer)
    assert expected.max() > 0
    torch.testing.assert_close(found, expected, **CLOSE)


@client("captum", "`IntegratedGradients` adds up to the logit's change; `LayerGradCam` is the map computed by hand")
def test_captum(form):
    from captum.attr import IntegratedGradients, LayerGradCam

    model, targets = build(form), torch.tensor(TARGETS)
    found = IntegratedGradients(model).attribute(X, target=targets, n_steps=100, internal_batch_size=20)
    change = (run(model, X) - model(torch.zeros_like(X)).detach())[range(2), TARGETS]
    torch.testing.assert_close(found.sum((1, 2, 3)).float(), change, rtol=0.05, atol=0.02)
    layer = backbone_of(model).layer3
    cam = LayerGradCam(model, layer).attribute(X, target=targets, relu_attributions=True)
    torch.testing.assert_close(cam.squeeze(1).detach(), grad_cam(model, layer), **CLOSE)


@client("ttach", "`ClassificationTTAWrapper` with flips: mean of the logits of both")
def test_ttach(form):
    import ttach

    model = build(form)
    found = ttach.ClassificationTTAWrapper(model, ttach.aliases.flip_transform(), merge_mode="mean")
    versions = [X, X.flip(3), X.flip(2), X.flip(2, 3)]
    torch.testing.assert_close(run(found, X), torch.stack([run(model, x) for x in versions]).mean(0), **CLOSE)


CHANNELS = (
    "each stage's norms keep channels of their own choice, which then do not fit the shared weights",
    AssertionError,
)


@client("torch-pruning", "`MagnitudePruner`: which channels are left, in every norm", concat=CHANNELS)
def test_torch_pruning(form):
    import torch_pruning

    model = build(form)
    norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, torch.nn.BatchNorm2d)}
    for norm in norms.values():
        norm.running_mean.copy_(torch.arange(norm.num_features))  # says which channel one is
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        X,
        torch_pruning.importance.MagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[backbone_of(model).fc],
    )
    pruner.step()
    assert model(X).shape == (2, 5)
    left = {name: norm.running_mean.tolist() for name, norm in norms.items()}
    assert len(left["conv1.1" if form == "plain" else "backbone.conv1.1"]) == 8  # of 16
    for name, channels in left.items():
        if name.startswith("stages."):
            assert channels == left[name.split(".", 2)[2]], name
