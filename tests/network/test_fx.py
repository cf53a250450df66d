"""torch.fx: feature extraction by the names of nodes, quantization, fusion: whatever the plain backbone allows."""

import copy
import functools

import pytest
import timm
import torch
from timm.layers import create_feature_extractor, get_graph_node_names
from timm.models import vision_transformer
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_fx
from torch.fx.experimental.optimization import optimize_for_inference
from torchvision.models import feature_extraction

import timm_wsms  # noqa: F401  registers the names
from tests.helpers.networks import images, randomize
from tests.helpers.tiers import slow_except

torch.set_num_threads(1)


def build(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).eval()


# stages that a tracer cannot enter (VoVNet: a part of its stem), features in a list (EfficientViM), tokens, positions
# that depend on the image's size (dynamic_img_size)
@pytest.mark.parametrize(
    "name",
    slow_except(
        ["test_resnet", "ese_vovnet19b_slim_dw", "efficientvim_m1", "vit_tiny_patch16_224", "test_vit"],
        "test_resnet",
        "test_vit",
    ),
)
def test_traced_network_gives_the_same(name):
    model = build(f"wsms_{name}")
    images = torch.randn(1, *model.default_cfg["input_size"])
    with torch.no_grad():
        found = create_feature_extractor(model, {"integration.norm": "map", "stages.2": "stage"})(images)
        traced = create_feature_extractor(model, [get_graph_node_names(model)[1][-1]])(images)
        torch.testing.assert_close(next(iter(traced.values())), model(images), rtol=1e-5, atol=1e-6)
    seen = []
    model.stages["2"].register_forward_hook(lambda module, args, output: seen.append(output))
    model.integration.norm.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        model(images)
    torch.testing.assert_close(found["stage"], seen[0])
    torch.testing.assert_close(found["map"], seen[1])


@pytest.mark.parametrize(
    "name, pyramid",
    slow_except(
        [("test_resnet", [2, 1, 0.5]), ("vit_tiny_patch16_224", [1, 0.7]), ("test_vit", [1, 0.5])],
        "test_resnet",
        "test_vit",
    ),
)
def test_traced_network_of_averaged_stages_gives_the_same(name, pyramid):
    model = build(f"wsms_{name}", fusion="mean", pyramid=pyramid)
    images = torch.randn(1, *model.default_cfg["input_size"])
    traced = create_feature_extractor(model, [get_graph_node_names(model)[1][-1]])
    with torch.no_grad():
        torch.testing.assert_close(next(iter(traced(images).values())), model(images), rtol=1e-5, atol=1e-6)


# ---- tracers that know nothing of timm


@functools.cache
def network(name, fusion):
    """With values that no default would hide."""
    torch.manual_seed(0)
    arguments = {} if fusion is None else {"fusion": fusion, "stages": 2}
    return randomize(timm.create_model(name if fusion is None else f"wsms_{name}", num_classes=5, **arguments)).eval()


def by_symbolic_trace(model, x):
    return torch.fx.symbolic_trace(model)(x)


def by_torchvision(model, x):
    """torchvision's feature extraction leaves a model that it cannot trace in training mode."""
    return feature_extraction.create_feature_extractor(
        model, {feature_extraction.get_graph_node_names(model)[1][-1]: "y"}
    )(x)["y"]


def observed_for_quantization(model, x):
    return prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping("x86"), (x,))(x)


def optimized_for_inference(model, x):
    return optimize_for_inference(model)(x)


@pytest.mark.parametrize("fusion", ["concat", "mean", None])
@pytest.mark.parametrize("name", slow_except(["test_resnet", "test_convnext", "test_efficientnet"], "test_resnet"))
@pytest.mark.parametrize("run", [by_symbolic_trace, by_torchvision, observed_for_quantization, optimized_for_inference])
def test_what_traces_the_plain_backbone_traces_the_network(run, name, fusion):
    model, x = network(name, fusion), images(64)
    with torch.no_grad():
        expected = model(x)
        assert expected.std() > 1e-4
        torch.testing.assert_close(run(model, x), expected, rtol=1e-4, atol=1e-5)
    traced = torch.fx.symbolic_trace(model)
    other = images(96, number=3, seed=2)
    torch.testing.assert_close(traced(other), model(other), rtol=1e-5, atol=1e-6)  # sizes are not in the graph


def test_nodes_inside_of_stage_1_and_of_other_stages():
    model, x, seen = network("test_resnet", "concat"), images(64), []
    nodes = {"backbone.layer3": "first", "stages.2.backbone.layer2": "second"}
    found = feature_extraction.create_feature_extractor(model, nodes)(x)
    hooks = [model.get_submodule(path).register_forward_hook(lambda *args: seen.append(args[2])) for path in nodes]
    model(x)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found["first"], seen[0])
    torch.testing.assert_close(found["second"], seen[1])


def test_nothing_of_timms_is_changed():
    """To build, trace and run a network adds nothing to timm's modules, and nothing that a tracer patches in them."""
    plain = timm.create_model("test_vit")  # timm registers functions of its own when a model is traced
    create_feature_extractor(plain, [get_graph_node_names(plain)[1][-1]])
    patched = {name for _, name in torch.fx._symbolic_trace._wrapped_fns_to_patch}
    before = dict(vars(vision_transformer))
    model = build("wsms_test_vit")
    create_feature_extractor(model, [get_graph_node_names(model)[1][-1]])
    assert all(vars(vision_transformer)[name] is value for name, value in before.items())
    assert {name for _, name in torch.fx._symbolic_trace._wrapped_fns_to_patch} == patched


def test_traced_network_trains():
    model = build("wsms_test_resnet")
    traced = create_feature_extractor(model, [get_graph_node_names(model)[1][-1]]).train()
    next(iter(traced(torch.randn(2, 3, 64, 64)).values())).sum().backward()
    assert all(parameter.grad is not None for parameter in traced.parameters())
    assert {*map(id, traced.parameters())} == {*map(id, model.parameters())}
