"""The paper's parameters, multiplications and depths (Tables 1 to 3, Sections 4.1, 4.2) come out."""

import math

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import timm_wsms  # noqa: F401  registers the names
from tests.helpers.paper import CIFAR

pytestmark = pytest.mark.slow  # full-size networks, if without memory

IMAGENET = [  # name, depth, paper's parameters, parameters: Table 3
    ("resnet50", 50, 25.6, 25.557),
    ("resnet101", 101, 44.5, 44.549),
    ("resnet152", 152, 60.2, 60.193),
    ("wsms_resnet50_avgpool", 51, 32.9, 32.94),
    ("wsms_resnet101_avgpool", 102, 52.0, 51.99),
    ("wsms_resnet152_avgpool", 153, 67.7, 67.68),
    ("wsms_resnet50", 51, 32.9, 32.94),
    ("wsms_resnet101", 102, 52.0, 51.99),
    ("wsms_resnet152", 153, 67.7, 67.68),
]

MULTIPLICATIONS = [  # in billions, at 224×224
    ("resnet50", 4.09),
    ("wsms_resnet50", 5.38),
    ("resnet50_avgpool", 5.13),
    ("wsms_resnet50_avgpool", 6.62),
]


def build(name, integration="", **kwargs):
    """Without memory: on the meta device."""
    if integration:
        kwargs["integration"] = integration
    with torch.device("meta"):
        return timm.create_model(name, **kwargs).eval()


def parameters(module):
    """Parameters in millions; a shared one counts once."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def multiplications(model):
    """Multiplications of one forward pass for one image, in millions."""
    image = torch.zeros(1, *model.default_cfg["input_size"], device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() / 2 / 1e6


def depth(model):
    """Layers with weights along stage 1; the convolutions of shortcuts are not counted (He et al. 2016)."""
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and not name.startswith("stages.") and "downsample" not in name
    ]
    return len(layers)


def decimals(figure):
    return len(str(figure).partition(".")[2])


def check_paper(figure, counted, model, note):
    """The paper's figure follows from the counted parameters, in the way that the note says."""
    assert note in ("rounded", "cut off", "without integration")
    if note == "without integration":
        counted -= parameters(model.integration)
    rounded = round(counted, decimals(figure))
    if note == "cut off":
        unit = 10 ** -decimals(figure)
        assert figure == pytest.approx(math.floor(counted / unit) * unit, abs=1e-9)
        assert figure != rounded  # else there was nothing to remark
    else:
        assert figure == rounded


@pytest.mark.parametrize("row", CIFAR, ids=lambda row: f"{row.name}-{row.integration}")
def test_cifar_table(row):
    c10, c100 = build(row.name, row.integration), build(row.name, row.integration, num_classes=100)
    assert parameters(c10) == pytest.approx(row.c10, abs=0.005)
    assert parameters(c100) == pytest.approx(row.c100, abs=0.005)
    assert depth(c10) == depth(c100) == row.depth
    check_paper(row.paper_c10, parameters(c10), c10, row.note[0])
    if row.note[1] == "the C10 count":
        assert row.paper_c100 == row.paper_c10 != round(parameters(c100), 1)
    else:
        check_paper(row.paper_c100, parameters(c100), c100, row.note[1])

    counted = multiplications(c10)
    assert counted == pytest.approx(row.multiplications, rel=0.01)
    if row.paper_multiplications:
        assert counted == pytest.approx(row.paper_multiplications, rel=0.01)


def test_integration_layers_that_the_paper_left_out():
    for name, size in (("ms_densenet100_k24_cifar", 0.596), ("ms_resnet110_cifar", 0.015)):
        assert parameters(build(name).integration) == pytest.approx(size, abs=0.0005)


@pytest.mark.parametrize("name, layers, paper, count", IMAGENET, ids=lambda value: str(value))
def test_imagenet_table(name, layers, paper, count):
    model = build(name)
    assert parameters(model) == pytest.approx(count, abs=0.005)
    assert depth(model) == layers
    check_paper(paper, parameters(model), model, "rounded")


@pytest.mark.parametrize("name, billions", MULTIPLICATIONS)
def test_imagenet_multiplications(name, billions):
    assert multiplications(build(name)) / 1e3 == pytest.approx(billions, rel=0.01)


def test_three_stages_cost_a_third_more():
    assert multiplications(build("wsms_resnet50")) / multiplications(build("resnet50")) == pytest.approx(
        1.316, abs=5e-4
    )
