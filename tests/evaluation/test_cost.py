"""Parameters and multiplications: against numbers worked out by hand, and published ones."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from timm_wsms.evaluation import multiplications, parameters


def small_network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 16×12 → 8×6: 8·6 positions × 8 channels × 3·9 weights
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),  # 8·6 positions × 8 channels × 9 weights
        nn.AvgPool2d(2),  # → 4×3
        nn.Conv2d(8, 4, 1, bias=False),  # 4·3 positions × 4 channels × 8 weights
        nn.Flatten(),
        nn.Linear(48, 5),
    )


def test_small_network_by_hand():
    model = small_network()
    assert parameters(model) == (8 * 27 + 8) + (8 + 8) + 8 * 9 + 4 * 8 + (48 * 5 + 5)
    assert multiplications(model, (3, 16, 12)) == 48 * 8 * 27 + 48 * 8 * 9 + 12 * 4 * 8 + 48 * 5


def test_shared_weights_are_stored_once_and_used_twice():
    shared = nn.Conv2d(2, 2, 1, bias=False)
    model = nn.Sequential(shared, shared)
    assert parameters(model) == 4
    assert multiplications(model, (2, 5, 7)) == 2 * 35 * 4


class Attention(nn.Module):
    def forward(self, images):  # (1, 2, 5, 4): 2 heads, 5 tokens, 4 channels
        return F.scaled_dot_product_attention(images, images, images)


def test_attention_by_hand():
    assert multiplications(Attention(), (2, 5, 4)) == 2 * (5 * 5 * 4) * 2


def test_resnet18_as_published():
    model = timm.create_model("resnet18")
    assert parameters(model) == 11_689_512  # torchvision's documentation
    assert multiplications(model, (3, 224, 224)) / 1e9 == pytest.approx(1.81, abs=0.005)


def test_model_stays_as_it_was():
    model = small_network().train()
    model[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    multiplications(model, (3, 16, 12))
    assert model.training and model[1].training and not model[2].training
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_compiled_and_half_precision():
    expected = multiplications(small_network(), (3, 16, 12))
    assert multiplications(small_network().to(torch.bfloat16), (3, 16, 12)) == expected
    assert multiplications(torch.compile(small_network()), (3, 16, 12)) == expected
    in_place = small_network()
    in_place.compile()
    assert multiplications(in_place, (3, 16, 12)) == expected


def test_attention_counts_whatever_form_it_takes():
    """By hand: two products of 25 × 25 pairs of tokens over 64 channels in each of the blocks."""
    model = timm.create_model("test_vit", img_size=80)
    tokens, width = 26, 64
    linear = sum(module.weight.numel() for module in model.blocks.modules() if isinstance(module, nn.Linear)) * tokens
    attention = len(model.blocks) * 2 * tokens * tokens * width
    embedding, head = model.patch_embed.proj.weight.numel() * (tokens - 1), model.head.weight.numel()
    assert multiplications(model, (3, 80, 80)) == linear + attention + embedding + head
