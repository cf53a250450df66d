"""Export with a dynamic batch, ONNX, bfloat16 and activation checkpointing for the backbones that people use most.

What is exported has all kinds of blocks that the full-size form has, but fewer of them; `make sweep` exports that too.
The reference is the network itself, run eagerly in float32. That checkpointing changes neither gradients nor running
statistics is shown in test_state.py; here, that it saves memory.
"""

import functools
import warnings

import onnxruntime
import pytest
import timm
import torch
from torch import nn

import timm_wsms  # noqa: F401
from tests.helpers import networks

pytestmark = pytest.mark.slow  # exports, and full-size backbones

SIDE = 64  # pixels
FIXED = {"img_size": SIDE}
BACKBONES = {
    "resnet50": {},
    "convnext_tiny": {},
    "efficientnet_b0": {},
    "densenet121": {},
    "mobilenetv3_large_100": {},
    "swin_tiny_patch4_window7_224": FIXED,
    "vit_small_patch16_224": FIXED,
}
each_backbone = pytest.mark.parametrize("name", BACKBONES)
SHORTER = {
    "resnet50": {"layers": (1, 2, 2, 1)},
    "convnext_tiny": {"depths": (1, 1, 2, 1)},
    "densenet121": {"block_config": (2, 3, 3, 2)},
    "swin_tiny_patch4_window7_224": {"depths": (2, 2, 1, 1), "stages": 2, **FIXED},
    "vit_small_patch16_224": {"depth": 3, **FIXED},
}
# MobileNetV3 in full; EfficientNet, which has the same blocks but for the activation, as timm's small one.
FORMS = {name: (name, form) for name, form in BACKBONES.items()}
FORMS |= {f"short {name}": (name, form) for name, form in SHORTER.items()}
FORMS["test_efficientnet"] = ("test_efficientnet", {})
IN_FULL = {*BACKBONES} - {"mobilenetv3_large_100"}
each_form = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.sweep if name in IN_FULL else []) for name in FORMS]
)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def images(number, seed=1):
    return networks.images(SIDE, number, seed)


@functools.cache
def network(name):
    """A network in eval mode whose statistics fit its images and whose logits have a standard deviation of 1."""
    torch.manual_seed(0)
    backbone, form = FORMS[name]
    model = timm.create_model(f"wsms_{backbone}", num_classes=5, **form)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images(8))
        spread = model.eval()(images(8)).std(0)
        classifier = model.get_classifier()
        classifier.weight.div_(spread[:, None])
        classifier.bias.div_(spread)
    return model


@functools.cache
def exported(name):
    return torch.export.export(network(name), (images(2),), dynamic_shapes=({0: torch.export.Dim("batch")},))


def expected_logits(name, number):
    with torch.no_grad():
        logits = network(name)(images(number))
    assert number == 1 or logits.std(0).mean() > 0.3  # equal logits for every image would be no test
    return logits


@each_form
def test_exported_with_dynamic_batch(name):
    run = exported(name).module()
    with torch.no_grad():
        for number in (1, 2, 5):
            torch.testing.assert_close(run(images(number)), expected_logits(name, number), **CLOSE)


@each_form
def test_onnx_with_dynamic_batch(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(exported(name), dynamo=True, optimize=False, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (taken,) = session.get_inputs()
    assert not isinstance(taken.shape[0], int) and taken.shape[1:] == [3, SIDE, SIDE]
    for number in (2, 5):
        (logits,) = session.run(None, {taken.name: images(number).numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected_logits(name, number), **CLOSE)


@each_backbone
def test_autocast_bfloat16(name):
    """Every layer of every stage computes in bfloat16, and the logits are off by what the backbone's own are off."""
    model, dtypes = network(name), {}
    layers = {key: part for key, part in model.named_modules() if isinstance(part, (nn.Conv2d, nn.Linear))}
    hooks = [
        layer.register_forward_hook(lambda _, __, output, key=key: dtypes.update({key: output.dtype}))
        for key, layer in layers.items()
    ]
    try:
        error = bfloat16_error(model)
    finally:
        for hook in hooks:
            hook.remove()
    assert dtypes == dict.fromkeys(layers, torch.bfloat16)
    assert error < 0.02 + 1.5 * bfloat16_error(model.backbone)


def bfloat16_error(model):
    """Of the logits, relative to their norm. Untrained networks are chaotic: EfficientNet's is 0.16."""
    with torch.no_grad():
        expected = model(images(5))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images(5))
    return (logits - expected).norm() / expected.norm()


@each_backbone
def test_checkpointing_saves_memory_in_every_stage(name):
    model = network(name)
    kept = {"none": saved_bytes(model)}
    try:
        model.backbone.set_grad_checkpointing(True)
        kept["stage 1"] = saved_bytes(model)
        model.set_grad_checkpointing(True)
        kept["all"] = saved_bytes(model)
    finally:
        model.set_grad_checkpointing(False)
    assert kept["stage 1"] < 0.7 * kept["none"] and kept["all"] < 0.85 * kept["stage 1"], kept
    assert saved_bytes(model) == kept["none"]


def saved_bytes(model):
    """Bytes of the activations that a forward pass in eval mode keeps for the backward pass; views count once."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(images(4))
    assert logits.requires_grad  # its graph, and so what was saved, has lived until here
    return sum(saved.values())
