"""Networks of every form of sharing, and what the tests of the state-dict promise compare of them."""

import pytest
import timm
import torch
from torch import nn

torch.set_num_threads(1)
EXACT = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
FORMS = {  # every way in which tensors are shared, or not
    "batch": ("test_resnet", {}),
    "none": ("test_resnet", {"unshared_norms": "none"}),
    "statistics": ("test_resnet", {"unshared_norms": "statistics"}),
    "statistics, BatchNormAct": ("test_efficientnet", {"unshared_norms": "statistics"}),
    "all": ("test_convnext", {"unshared_norms": "all"}),
    "ms": ("test_resnet", {"share_weights": False}),
    "own head": ("test_resnet", {"integration": "none", "residual": False}),
    "own table": ("test_vit", {}),  # one module holds tensors that are shared and others that are not
    "mean": ("test_resnet", {"fusion": "mean", "pyramid": [2, 1, 0.5]}),
    "mean own table": ("test_vit", {"fusion": "mean", "stages": 2}),
    "own end": ("densenet100_k24_cifar", {"depth": 10}),  # stages that end in a norm of their own
}
# Convolutions and matrices are shared by all stages.
SHARED = ("batch", "none", "statistics", "all", "own table", "mean", "mean own table")
each_form = pytest.mark.parametrize("form", FORMS)


def build(form="batch", seed=0, **kwargs):
    """A network whose tensors, γ and running statistics too, have values that no default would hide."""
    name, arguments = FORMS[form]
    torch.manual_seed(seed)
    model = timm.create_model(f"wsms_{name}", num_classes=5, **arguments, **kwargs)
    return randomize(model, seed)


def randomize(model, seed=0):
    """Norms, biases and scales as after training, so that no default hides one that was left out.

    With a seed other than 0 the other weights change too.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.numel() == max((*tensor.shape, 1)):  # (C,), or (C, 1, 1)
                noise = torch.rand(tensor.shape, generator=generator).to(tensor.dtype)
                tensor.copy_(noise / 2 - 0.25 if name.endswith(("bias", "running_mean")) else noise + 0.5)
            elif tensor.is_floating_point() and seed:
                tensor.mul_(1 + torch.rand(tensor.shape, generator=generator).to(tensor.dtype))
    return model


def images(side=64, number=2, seed=1, dtype=torch.float32, channels=3):
    """Noise (number, channels, side, side), always the same; `side` may be (height, width)."""
    size = side if isinstance(side, tuple) else (side, side)
    return torch.randn(number, channels, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def logits(model, dtype=torch.float32):
    with torch.no_grad():
        return model.eval()(images(dtype=dtype))


def batch_norms(model):
    """Its batch norms, of whatever kind."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def tensors(model):
    """Every parameter and buffer by name, a shared one under each of its names."""
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


def sharing(model):
    """Which names stand for one tensor."""
    groups = {}
    for name, tensor in tensors(model).items():
        groups.setdefault(id(tensor), set()).add(name)
    return sorted(sorted(group) for group in groups.values())


def check_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, expected[key], **(tolerance or EXACT), msg=lambda text, key=key: key + text)


def check_values_are_shared(model):
    """A change of a shared tensor reaches every stage that has it: by values, not by identity."""
    with torch.no_grad():
        for name, tensor in model.backbone.named_parameters():
            tensor.fill_(len(name))
    changed = 0
    for stage in model.stages.values():
        for name, tensor in stage.backbone.named_parameters():
            if tensor.ndim in (2, 4):
                changed += 1
                assert (tensor == len(name)).all(), name
    assert changed > 10


def gradients(model, x, loss=lambda output: output.square().sum()):
    model.zero_grad()
    loss(model(x)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
