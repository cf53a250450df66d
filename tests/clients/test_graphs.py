"""Tracers, compilers and exports: what they make of a network gives the network's logits, at other sizes too."""

import copy
import functools

import torch
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_fx
from torch.export import Dim
from torch.fx.experimental.optimization import optimize_for_inference
from torchvision.models import feature_extraction

from tests.helpers.clients import CLOSE, build, client, run
from tests.helpers.networks import check_same, images

X = images(64)
OTHERS = [images(64, number=3, seed=2), images((96, 128), seed=3)]
ODD = [images((97, 129)), images((66, 127)), images((128, 95))]  # sides that no stride divides


def check(found, model, xs=OTHERS, **tolerance):
    for x in xs:
        torch.testing.assert_close(found(x), run(model, x), **(tolerance or CLOSE))


@client("torch", "`torch.fx.symbolic_trace`: logits, at other sizes too")
def test_symbolic_trace(form):
    model = build(form)
    check(torch.fx.symbolic_trace(model), model)


@client("torch", "`prepare_fx`, `optimize_for_inference`: logits")
def test_prepare_and_optimize(form):
    model = build(form)
    check(prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping("x86"), (X,)), model)
    check(optimize_for_inference(model), model)


@client("torchvision", "`create_feature_extractor`: logits, and the map of a block")
def test_create_feature_extractor(form):
    model, seen = build(form), []
    block = "layer3" if form == "plain" else "backbone.layer3"
    last = feature_extraction.get_graph_node_names(model)[1][-1]
    extractor = feature_extraction.create_feature_extractor(model, {last: "logits", block: "map"})
    found = extractor(X)
    model.get_submodule(block).register_forward_hook(lambda *values: seen.append(values[2]))
    torch.testing.assert_close(found["logits"], run(model, X), **CLOSE)
    torch.testing.assert_close(found["map"], seen[0], **CLOSE)


@client("torch", "`torch.jit.trace`: logits, at other sizes too")
def test_jit_trace(form):
    model = build(form)
    check(torch.jit.trace(model, X, check_trace=False), model, [*OTHERS, *ODD])


REASON = "the code around the backbone is not TorchScript; use `torch.jit.trace` or `torch.export`"


@client("torch", "`torch.jit.script`: logits", concat=(REASON, Exception), mean=(REASON, Exception))
def test_jit_script(form):
    model = build(form)
    check(torch.jit.script(model), model)


@client("torch", "`torch.compile(fullgraph=True)`: logits and gradients")
def test_compile(form):
    model, expected = build(form), build(form)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    check(compiled, expected, [X])
    for network in (compiled, expected):
        network(X).square().mean().backward()
    gradients = [{name: one.grad for name, one in network.named_parameters()} for network in (model, expected)]
    check_same(*gradients, rtol=1e-3, atol=1e-5)


# timm's test_resnet pools odd maps by a rule that no export with dynamic sizes takes.
SMALL = {"backbone": "resnet18", "layers": (1, 1, 1, 1), "channels": (8, 16, 16, 16)}


@functools.cache
def exported(form):
    """A network, and its program for any batch and for sides from 66."""
    model = build(form, **SMALL)
    sides = {0: Dim("batch"), 2: Dim("height", min=66, max=1024), 3: Dim("width", min=66, max=1024)}
    return model, torch.export.export(model, (images((96, 160)),), dynamic_shapes=(sides,))


@functools.cache
def onnx_of(form):
    program = torch.onnx.export(exported(form)[1], dynamo=True, optimize=False, verbose=False)
    return program.model_proto.SerializeToString()


@client("torch", "`torch.export`, dynamic batch, height and width from 66: logits, at odd sides too")
def test_export(form):
    model, program = exported(form)
    check(program.module(), model, [OTHERS[1], *ODD])


@client("onnxruntime", "ONNX, dynamic batch, height and width: logits, at odd sides too")
def test_onnx(form):
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_of(form))
    name = session.get_inputs()[0].name
    check(lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]), exported(form)[0], [OTHERS[1], *ODD])


@client("openvino", "from ONNX, dynamic batch, height and width: logits, at odd sides too")
def test_openvino(form, tmp_path):
    import openvino

    (tmp_path / "model.onnx").write_bytes(onnx_of(form))
    compiled = openvino.Core().compile_model(tmp_path / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    check(
        lambda x: torch.from_numpy(compiled(x.numpy())[0]), exported(form)[0], [OTHERS[1], *ODD], rtol=1e-3, atol=1e-4
    )
