"""WsmsNet of backbones of a fixed image size, against plain ones that timm built for each of the sizes."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import timm_wsms  # noqa: F401  registers the names

torch.set_num_threads(1)
SWIN = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 4}
WINDOWS = {"transformer_window_size": (5, 5), "transformer_grid_size": (5, 5)}  # stage 1's, in every stage
NETWORKS = {  # name: pixels, arguments of the backbone in every stage, and of the plain ones besides
    "swin_tiny_patch4_window7_224": (64, SWIN, {}),  # windows of 4 or, where the map is smaller, 2
    "test_coatnet": (160, {}, {}),  # biases by position on the whole map
    "test_maxvit": (160, {}, WINDOWS),
}


def network(name, **kwargs):
    """With values that no default would hide."""
    side, arguments, _ = NETWORKS[name]
    torch.manual_seed(0)
    model = timm.create_model(f"wsms_{name}", num_classes=5, img_size=side, **arguments, **kwargs).double().eval()
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            if tensor.ndim == 1:
                positive = not key.endswith(("bias", "running_mean"))
                tensor.copy_(torch.rand_like(tensor) + (0.5 if positive else -0.5))
            elif "position" in key:
                tensor.copy_(torch.randn_like(tensor))
    return model


class Part(nn.Module):
    """The first blocks of a plain backbone, for images of a size of its own: (B, 3, H, W) → (B, C, h, w)."""

    def __init__(self, backbone, depth):
        super().__init__()
        self.backbone, self.depth = backbone.double().eval(), depth

    def forward(self, image):
        swin = hasattr(self.backbone, "patch_embed")
        x = self.backbone.patch_embed(image) if swin else self.backbone.stem(image)
        for block in (self.backbone.layers if swin else self.backbone.stages)[: self.depth]:
            x = block(x)
        if self.depth == 4:
            x = self.backbone.norm(x)
        return x.permute(0, 3, 1, 2) if swin else x


def by_hand(values, name, image):
    """Logits from plain backbones of three sizes, with the values of a network's state dict."""
    side, arguments, plain = NETWORKS[name]
    maps = []
    for number, depth in ((1, 4), (2, 3), (3, 2)):
        backbone = timm.create_model(name, num_classes=5, img_size=side // 2 ** (number - 1), **arguments, **plain)
        part = Part(backbone, depth)
        keys = {key: f"stages.{number}.{key}" for key in part.state_dict()}
        own = {key: values.get(stage_key, values[key]) for key, stage_key in keys.items()}  # its own, or the shared
        maps.append(functional_call(part, own, image))
        image = F.avg_pool2d(image, 2)
    x = torch.einsum("oc,bchw->bohw", values["integration.conv.weight"][:, :, 0, 0], torch.cat(maps, 1))
    norm = {key: values[f"integration.norm.{key}"] for key in ("running_mean", "running_var", "weight", "bias")}
    x = maps[0] + values["integration.gamma"][:, None, None] * F.relu(F.batch_norm(x, **norm))
    return F.linear(x.mean((2, 3)), values["backbone.head.fc.weight"], values["backbone.head.fc.bias"])


@pytest.mark.parametrize(
    "name, unshared_norms",
    [
        ("swin_tiny_patch4_window7_224", "batch"),
        ("swin_tiny_patch4_window7_224", "all"),
        ("test_coatnet", "batch"),
        ("test_maxvit", "batch"),
    ],
)
def test_logits_and_gradients_are_those_of_plain_backbones_with_tied_values(name, unshared_norms):
    model = network(name, unshared_norms=unshared_norms)
    values = {key: value.clone() for key, value in model.state_dict().items()}
    for key, _ in model.named_parameters():
        values[key].requires_grad_()
    side = NETWORKS[name][0]
    image = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, expected = model(image), by_hand(values, name, image)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    found.square().sum().backward()
    expected.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, key
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, values[key].grad, rtol=1e-9, atol=1e-10 * max(1, scale), msg=key)
