"""Compiled and exported, a network computes the same."""

import copy
from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn

from tests.helpers.networks import CLOSE, build, check_same, gradients, images, randomize
from timm_wsms import UserError, WsmsNet
from timm_wsms.backbones.sequential import SequentialBackbone

pytestmark = pytest.mark.slow  # tracing a network takes ten seconds


@pytest.mark.parametrize(
    "form, training", [("batch", True), ("batch", False), ("own head", True), ("own head", False), ("mean", True)]
)
def test_compiled_as_one_graph(form, training):
    plain = build(form).double().train(training)
    model = copy.deepcopy(plain)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = images(dtype=torch.float64)
    torch.testing.assert_close(compiled(x), plain(x), **CLOSE)
    check_same(model.state_dict(), plain.state_dict(), **CLOSE)  # running statistics
    check_same(gradients(model.train(training), x), gradients(plain, x), **CLOSE)
    compiled(x).square().sum().backward()
    plain(x).square().sum().backward()
    for (name, parameter), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, **CLOSE, msg=lambda text, name=name: name + text)


def test_compiled_to_machine_code():
    """A backbone of two layers: every kernel takes the C++ compiler seconds."""
    torch.manual_seed(0)
    layers = {"conv0": nn.Conv2d(3, 8, 3, padding=1), "layer1": nn.Conv2d(8, 8, 3, stride=2, padding=1)}
    info = [
        {"num_chs": 8, "reduction": 1, "module": "features.conv0"},
        {"num_chs": 8, "reduction": 2, "module": "features.layer1"},
    ]
    backbone = SequentialBackbone(nn.Sequential(OrderedDict(layers)), info)
    plain = randomize(WsmsNet(lambda: backbone, residual=True)).eval()
    compiled = torch.compile(plain, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images(8)), plain(images(8)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_mambaout", "resnet20_cifar"])
def test_exported(name):
    torch.manual_seed(0)
    model = randomize(timm.create_model(f"wsms_{name}", num_classes=5)).eval()
    program = torch.export.export(model, (images(),))
    with torch.no_grad():
        for seed in (1, 2):
            torch.testing.assert_close(program.module()(images(seed=seed)), model(images(seed=seed)))


# ---- a graph per stage


class Compiler:
    """A backend that runs what it gets as it is, and counts the graphs and their operators."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, _inputs):
        self.graphs.append(sum(node.op == "call_function" for node in graph.graph.nodes))
        return graph.forward


@pytest.mark.parametrize("form", ["batch", "mean"])
def test_a_graph_per_stage_gives_what_the_network_gives(form):
    plain = build(form).double()
    model = copy.deepcopy(plain)
    compiler = Compiler()
    model.compile_stages(backend=compiler, fullgraph=True)
    x = images(dtype=torch.float64)
    check_same(gradients(model.train(), x), gradients(plain.train(), x), **CLOSE)
    check_same(model.state_dict(), plain.state_dict(), **CLOSE)  # running statistics; the names are the same
    assert len(compiler.graphs) == 3 and min(compiler.graphs) > 10


def test_the_weights_of_a_compiled_stage_are_those_of_the_network():
    """A copy runs on its own weights, and so does `functional_call` on those it is given."""
    model = build("mean").eval()
    model.compile_stages(backend=(compiler := Compiler()))
    x = images()
    with torch.no_grad():
        expected = model(x).clone()
        copied = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.zero_()
        assert not model(x).any()
        known = len(compiler.graphs)
        torch.testing.assert_close(copied(x), expected, **CLOSE)
        weights = dict(copied.named_parameters())
        torch.testing.assert_close(torch.func.functional_call(model, weights, (x,)), expected, **CLOSE)
    assert len(compiler.graphs) == known  # the copy is not compiled, the rest was


def test_every_size_of_a_compiled_stage_has_a_graph_of_its_own():
    model = build("all").eval()
    model.compile_stages(backend=(compiler := Compiler()))
    with torch.no_grad():
        for number, side in enumerate((64, 96, 64), start=1):
            torch.testing.assert_close(model(images(side)), copy.deepcopy(model)(images(side)), **CLOSE)
            assert len(compiler.graphs) == 3 * min(number, 2)


def test_what_has_no_graph_of_its_own_stage_is_refused():
    """PiT's last map is not among its features."""
    model = timm.create_model("wsms_pit_ti_224", num_classes=3)
    with pytest.raises(UserError, match=r"torch\.compile\(model\)"):
        model.compile_stages()
