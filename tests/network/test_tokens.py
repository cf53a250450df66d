"""WsmsNet of a ViT against one written out: the same resolution throughout, tokens, a table of positions a stage."""

import pytest
import timm
import torch
import torch.nn.functional as F

import timm_wsms  # noqa: F401  registers the names
from tests.helpers.networks import images

torch.set_num_threads(1)
PATCH, HEADS = 16, 2
DEPTHS = {"test_vit": (6, 4, 2), "test_vit2": (8, 6, 3)}  # blocks of stages 1, 2, 3: all, two thirds, one third
PREFIX = ("backbone.cls_token", "backbone.reg_token")


def network(name):
    """All tensors with values that no default would hide; 160 pixels a side."""
    torch.manual_seed(0)
    model = timm.create_model(f"wsms_{name}", num_classes=5).double()
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.ndim == 1:
                positive = not key.endswith(("bias", "running_mean"))
                tensor.copy_(torch.rand_like(tensor) + (0.5 if positive else -0.5))
            elif key.endswith(("pos_embed", "_token")):
                tensor.copy_(torch.randn_like(tensor))  # each stage's own
    return model


def half(x):
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


class ByHand:
    """The network as formulas over the values of a state dict.

    Args:
        values: By their keys; what stages share stands there once.
        depths: Blocks that each stage runs.
        training: Batch statistics in the integration layer.
    """

    def __init__(self, values, depths, training):
        self.values, self.depths, self.training = values, depths, training

    def linear(self, x, name):
        return x @ self.values[f"{name}.weight"].T + self.values[f"{name}.bias"]

    def norm(self, x, name):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return x * self.values[f"{name}.weight"] + self.values[f"{name}.bias"]

    def scale(self, x, name):
        return x * self.values.get(f"{name}.gamma", 1)

    def attention(self, x, name):
        q, k, v = self.linear(x, f"{name}.qkv").unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, d)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.linear((weights @ v).transpose(1, 2).flatten(2), f"{name}.proj")

    def tokens(self, image, pos_embed, depth):
        """(B, P + h·w, C)"""
        patches = image.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # (B, 3, h, w, 16, 16)
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        x = patches @ self.values["backbone.patch_embed.proj.weight"].flatten(1).T
        x = x + self.values["backbone.patch_embed.proj.bias"]
        prefix = [self.values[key].expand(len(x), -1, -1) for key in PREFIX if key in self.values]
        x = torch.cat([*prefix, x], 1) + pos_embed
        for number in range(depth):
            name = f"backbone.blocks.{number}"
            x = x + self.scale(self.attention(self.norm(x, f"{name}.norm1"), f"{name}.attn"), f"{name}.ls1")
            hidden = F.gelu(self.linear(self.norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
            x = x + self.scale(self.linear(hidden, f"{name}.mlp.fc2"), f"{name}.ls2")
        return self.norm(x, "backbone.norm") if "backbone.norm.weight" in self.values else x

    def resized(self, x, number, side):
        """Stage s's patches on stage 1's grid: both have their centers where they stand in the image."""
        own = int((x.shape[1] - 1) ** 0.5)
        where = (torch.arange(side, dtype=torch.float64) + 0.5) / 2 ** (number - 1) - 0.5  # in patches of stage s
        weights = 1 - (where.clamp(0, own - 1)[:, None] - torch.arange(own)).abs()
        weights = weights.clamp(min=0)  # (side, own)
        return torch.einsum("ih,jw,bhwc->bcij", weights, weights, x[:, 1:].unflatten(1, (own, own)))

    def integrated(self, maps):
        x = torch.einsum("oc,bchw->bohw", self.values["integration.conv.weight"][:, :, 0, 0], torch.cat(maps, 1))
        mean, var = self.values["integration.norm.running_mean"], self.values["integration.norm.running_var"]
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        weight, bias = self.values["integration.norm.weight"], self.values["integration.norm.bias"]
        mean, var, weight, bias, gamma = (
            tensor[:, None, None] for tensor in (mean, var, weight, bias, self.values["integration.gamma"])
        )
        return gamma * F.relu((x - mean) / (var + 1e-5).sqrt() * weight + bias)

    def logits(self, image):
        first = self.tokens(image, self.values["backbone.pos_embed"], self.depths[0])
        maps = [self.resized(first, 1, 10)]
        for number, depth in ((2, self.depths[1]), (3, self.depths[2])):
            image = half(image)
            padded = F.pad(image, (0, -image.shape[-1] % PATCH, 0, -image.shape[-2] % PATCH))  # 40 → 48 pixels
            found = self.tokens(padded, self.values[f"stages.{number}.backbone.pos_embed"], depth)
            maps.append(self.resized(found, number, 10))
        x = self.integrated(maps).flatten(2).transpose(1, 2)
        patches = first[:, 1:] + x
        if "backbone.fc_norm.weight" in self.values:
            return self.linear(self.norm(patches.mean(1), "backbone.fc_norm"), "backbone.head")
        return self.linear(first[:, 0] + x.mean(1), "backbone.head")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", DEPTHS)
def test_logits_and_gradients_are_those_of_the_network_written_by_hand(name, training):
    model = network(name)
    values = {key: value.clone() for key, value in model.state_dict().items()}
    for key, _ in model.named_parameters():
        values[key].requires_grad_()
    found = model.train(training)(images(160, 3, dtype=torch.float64))
    expected = ByHand(values, DEPTHS[name], training).logits(images(160, 3, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    target = torch.tensor([1, 3, 0])
    F.cross_entropy(found, target).backward()
    F.cross_entropy(expected, target).backward()
    compared = 0
    for key, parameter in model.named_parameters():
        if key == "backbone.reg_token" or values[key].grad is not None:
            compared += 1
            torch.testing.assert_close(parameter.grad, values[key].grad, rtol=1e-9, atol=1e-10, msg=key)
    assert compared == len([*model.parameters()])


def test_each_stage_has_a_table_of_positions_of_its_own_and_shares_the_rest():
    model = network("test_vit")
    state = model.state_dict()
    assert [key for key in state if key.startswith("stages.")] == [
        "stages.2.backbone.pos_embed",
        "stages.3.backbone.pos_embed",
    ]
    assert state["stages.2.backbone.pos_embed"].shape == (1, 1 + 5 * 5, 64)
    assert state["stages.3.backbone.pos_embed"].shape == (1, 1 + 3 * 3, 64)  # 40 pixels are padded to 48
    assert [len(stage.backbone.blocks) for stage in model.stages.values()] == [4, 2]


@pytest.mark.parametrize("name", ["pit_ti_224", "test_vit", "resmlp_12_224"])
def test_gamma_zero_leaves_logits_and_features_bit_for_bit(name):
    torch.manual_seed(0)
    model = timm.create_model(f"wsms_{name}").eval()
    side = model.default_cfg["input_size"][-1]
    x = torch.randn(1, 3, side, side)
    with torch.no_grad():
        model.integration.gamma.zero_()
        features = model.backbone.forward_features(x)
        assert torch.equal(model.forward_features(x), features) and torch.equal(model(x), model.backbone(x))
        model.integration.gamma.fill_(1)
        changed = model.forward_features(x)
    assert changed.shape == features.shape
    assert ((changed - features).abs().amax(-1) > 1e-4).all()  # every token, those of classes too
