"""Exported with dynamic height and width, a network equals itself run eagerly, at sides that 32 divides and others."""

import functools
import warnings

import onnxruntime
import pytest
import timm
import torch
import torch.fx.experimental._config
from torch.export import Dim

import timm_wsms  # noqa: F401  registers the names
from tests.helpers.networks import randomize

torch.set_num_threads(1)
SMALL = {"layers": (1, 1, 1, 1), "channels": (8, 16, 16, 16), "num_classes": 5, "stages": 2}
# torch.export holds for maps of more than one pixel: 66 for the half-size image of a backbone of reduction 32
SIZES = [(96, 96), (97, 129), (66, 127), (128, 65 + 32)]
LEAST = 66
each_form = pytest.mark.parametrize("fusion", ["concat", "mean"])


@functools.cache
def network(fusion):
    """Norms and γ with values that no default would hide."""
    torch.manual_seed(0)
    return randomize(timm.create_model("wsms_resnet18", fusion=fusion, **SMALL)).eval()


def image(height, width):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))


@functools.cache
def exported(fusion):
    sides = {2: Dim("height", min=LEAST, max=1024), 3: Dim("width", min=LEAST, max=1024)}
    return torch.export.export(network(fusion), (image(96, 160),), dynamic_shapes=(sides,))


def check(run, fusion, sizes, **tolerance):
    for height, width in sizes:
        with torch.no_grad():
            expected = network(fusion)(image(height, width))
            assert expected.std() > 1e-3
            torch.testing.assert_close(run(image(height, width)), expected, **tolerance)


@pytest.mark.slow
@each_form
def test_torch_export(fusion):
    check(exported(fusion).module(), fusion, SIZES, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@each_form
def test_onnx(fusion):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(exported(fusion), dynamo=True, optimize=False, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (taken,) = session.get_inputs()
    assert not isinstance(taken.shape[2], int) and not isinstance(taken.shape[3], int)

    def run(x):
        return torch.from_numpy(session.run(None, {taken.name: x.numpy()})[0])

    check(run, fusion, SIZES, rtol=1e-4, atol=1e-5)


@each_form
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace(fusion):
    traced = torch.jit.trace(network(fusion), (image(96, 160),), check_trace=False)
    check(traced, fusion, [*SIZES, (33, 65), (32, 64)], rtol=1e-6, atol=1e-6)


@pytest.mark.slow  # another export
@each_form
def test_torch_export_down_to_maps_of_one_pixel(fusion):
    """PyTorch takes a size of 1 for a constant unless told otherwise, and would refuse the range."""
    sides = {2: Dim("height", min=33, max=1024), 3: Dim("width", min=33, max=1024)}
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):
        program = torch.export.export(network(fusion), (image(96, 160),), dynamic_shapes=(sides,))
    check(program.module(), fusion, [(33, 65), (64, 64), (63, 40), *SIZES], rtol=1e-6, atol=1e-6)


# backbone: arguments, what sides must be a multiple of, from which side the plain backbone can be exported
FAMILIES = {
    "test_convnext": ({}, 1, 64),
    "test_efficientnet": ({}, 1, 33),
    "test_vit": ({"dynamic_img_size": True}, 16, 48),
}


@pytest.mark.slow  # exports
@each_form
@pytest.mark.parametrize("name", FAMILIES)
def test_torch_export_of_other_families(name, fusion):
    """Every size of the plain backbone's export, twice as large since stage 2 sees half."""
    arguments, multiple, least = FAMILIES[name]
    torch.manual_seed(0)
    model = timm.create_model(f"wsms_{name}", fusion=fusion, stages=2, num_classes=5, **arguments)
    randomize(model).eval()
    sides = [multiple * Dim(side, min=2 * least // multiple, max=512 // multiple) for side in ("height", "width")]
    run = torch.export.export(model, (image(192, 160),), dynamic_shapes=(dict(enumerate(sides, start=2)),)).module()
    for height, width in [(129, 161), (128, 193), (191, 150), (240, 304), (2 * least, 2 * least + 1)]:
        x = image(height - height % multiple, width - width % multiple + multiple)
        with torch.no_grad():
            expected = model(x)
            assert expected.std() > 1e-3
            torch.testing.assert_close(run(x), expected, rtol=1e-5, atol=1e-6)
