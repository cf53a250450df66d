"""torch.fx: timm's and torchvision's feature extraction by the names of nodes, wherever the backbone allows it."""

import pytest
import timm
import torch
from timm.layers import create_feature_extractor, get_graph_node_names

import timm_wsms  # noqa: F401  registers the names

torch.set_num_threads(1)


def build(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).eval()


# stages that a tracer cannot enter (VoVNet: a part of its stem), features in a list (EfficientViM), tokens, positions
# that depend on the image's size (dynamic_img_size)
@pytest.mark.parametrize(
    "name", ["test_resnet", "ese_vovnet19b_slim_dw", "efficientvim_m1", "vit_tiny_patch16_224", "test_vit"]
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
    "name, pyramid", [("test_resnet", [2, 1, 0.5]), ("vit_tiny_patch16_224", [1, 0.7]), ("test_vit", [1, 0.5])]
)
def test_traced_network_of_averaged_stages_gives_the_same(name, pyramid):
    model = build(f"wsms_{name}", fusion="mean", pyramid=pyramid)
    images = torch.randn(1, *model.default_cfg["input_size"])
    traced = create_feature_extractor(model, [get_graph_node_names(model)[1][-1]])
    with torch.no_grad():
        torch.testing.assert_close(next(iter(traced(images).values())), model(images), rtol=1e-5, atol=1e-6)


def test_traced_network_trains():
    model = build("wsms_test_resnet")
    traced = create_feature_extractor(model, [get_graph_node_names(model)[1][-1]]).train()
    next(iter(traced(torch.randn(2, 3, 64, 64)).values())).sum().backward()
    assert all(parameter.grad is not None for parameter in traced.parameters())
    assert {*map(id, traced.parameters())} == {*map(id, model.parameters())}
