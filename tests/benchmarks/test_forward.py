"""The benchmark of cost: its wrapper, counts and turns against values worked out by hand; a run on a tiny network."""

import importlib
import json
import random

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import timm_wsms  # noqa: F401
from timm_wsms.network.parallel_stages import ParallelStages

pytestmark = pytest.mark.slow  # a benchmark


@pytest.fixture
def forms(monkeypatch):
    module = importlib.import_module("benchmarks.speed.forward_networks")
    monkeypatch.setattr(module, "SIDE", 64)
    monkeypatch.setattr(module, "TURN", 0.0)
    return module


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_batch_1_on_streams(forms, monkeypatch, tmp_path, name):
    """The command on a CPU, where stages side by side are in threads: it checks that they give the network's logits."""
    module = importlib.import_module("benchmarks.speed.forward_batch1_gpu")
    monkeypatch.setattr(module, "SIDE", 64 if name == "test_resnet" else 160)
    monkeypatch.setattr(forms, "SIDE", module.SIDE)
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    out = tmp_path / "out.json"
    told = ["--models", name, "--device", "cpu", "--rounds", "1", "--out", str(out)]
    module.main([*told, "--seconds", "0"])
    assert not out.exists()
    module.main(told)
    found = json.loads(out.read_text())["backbones"][name]
    graphs, ms = found["eager and graphs"], found["eager and graphs"]["ms"]
    both = ms["wsms, graph with a stream per stage"] / ms["backbone, graph"]
    assert graphs["ratio"]["wsms, graph with a stream per stage"] == pytest.approx(both, rel=0.01)
    assert [*found["compiled"]["ratio"]] == ["wsms, compiled"] and graphs["multiplications"] > 1


def test_a_stream_that_gets_another_image_is_noticed(forms, monkeypatch):
    module = importlib.import_module("benchmarks.speed.forward_batch1_gpu")
    monkeypatch.setattr(module, "SIDE", 64)
    forward = ParallelStages.forward
    monkeypatch.setattr(ParallelStages, "forward", lambda self, x: forward(self, x.flip(-1)))
    with pytest.raises(AssertionError, match="not close"):
        module.measure("test_resnet", False, "cpu", 1)


@pytest.fixture
def cost(forms, monkeypatch):
    module = importlib.import_module("benchmarks.speed.forward")
    monkeypatch.setattr(module, "SIDE", 64)
    return module


def halves(x):
    return x, F.avg_pool2d(x, 2), F.avg_pool2d(F.avg_pool2d(x, 2), 2)


def test_wrapper_of_a_cnn_is_the_backbone_at_three_sizes(forms):
    torch.manual_seed(0)
    backbone = timm.create_model("test_resnet", num_classes=7).eval()
    wrapper = forms.multi_scale("test_resnet", backbone).eval()
    x = torch.randn(2, 3, 64, 64)
    pooled = [backbone.forward_features(image).mean((2, 3)) for image in halves(x)]
    expected = torch.cat(pooled, 1) @ wrapper.classifier.weight.T + wrapper.classifier.bias
    torch.testing.assert_close(wrapper(x), expected)
    assert expected.shape == (2, 7)


def test_wrapper_of_a_fixed_size_shares_all_but_tables_and_pads(forms, monkeypatch):
    monkeypatch.setattr(forms, "SIDE", 160)
    torch.manual_seed(0)
    backbone = timm.create_model("test_vit", num_classes=8).eval()  # patches of 16 pixels: 40 is padded to 48
    wrapper = forms.multi_scale("test_vit", backbone).eval()
    own = dict(backbone.named_parameters())
    for other, grid in zip(wrapper.backbones[1:], (5, 3), strict=True):
        apart = [name for name, parameter in other.named_parameters() if parameter is not own[name]]
        assert apart == ["pos_embed"] and other.pos_embed.shape[1] == grid**2 + 1
    x = torch.randn(2, 3, 160, 160)
    images = [*halves(x)[:2], F.pad(halves(x)[2], (0, 8, 0, 8))]
    pooled = [
        part.forward_head(part.forward_features(image), pre_logits=True)
        for part, image in zip(wrapper.backbones, images, strict=True)
    ]
    torch.testing.assert_close(wrapper(x), wrapper.classifier(torch.cat(pooled, 1)))


def test_forms_stand_on_the_same_weights_and_fused_ones_give_the_same(forms):
    found = forms.build_forms("test_resnet", training=False, fused=True)
    assert list(found) == ["backbone", "wsms", "multi_scale", "backbone_fused", "wsms_fused"]
    assert found["backbone"] is found["wsms"].backbone is found["multi_scale"].backbones[2]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in found["backbone_fused"].modules())
    assert found["backbone"].conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(found["wsms_fused"](x), found["wsms"](x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["backbone_fused"](x), found["backbone"](x), rtol=1e-4, atol=1e-5)


def test_relocation_moves_every_tensor_and_changes_nothing(forms):
    network = timm.create_model("wsms_test_resnet").eval()
    x = torch.randn(2, 3, 64, 64)
    expected = network(x)
    tensors = [*network.parameters(), *network.buffers()]
    places = [tensor.data_ptr() for tensor in tensors]
    ballast = forms.relocate([network, network.backbone], random.Random(0))
    assert len(ballast) == len(tensors)
    moved = [*network.parameters(), *network.buffers()]
    assert all(one is other for one, other in zip(moved, tensors, strict=True))
    assert sum(tensor.data_ptr() != place for tensor, place in zip(moved, places, strict=True)) > 0.9 * len(places)
    torch.testing.assert_close(network(x), expected, rtol=0, atol=0)


def test_peak_is_what_a_step_has_to_hold(forms):
    wide = nn.Linear(768, 1000, bias=False)
    step = forms.TrainingStep(nn.Sequential(nn.Flatten(), wide), torch.randn(4, 3, 16, 16))
    step()
    assert step.held_bytes() == 2 * wide.weight.nbytes + step.images.nbytes  # weight and momentum
    assert 3 * wide.weight.nbytes < forms.peak_bytes(step) < 3.05 * wide.weight.nbytes  # and gradient

    deep = nn.Sequential(nn.Linear(8, 8), *[nn.Tanh() for _ in range(50)], nn.Linear(8, 8))
    step = forms.TrainingStep(deep, torch.randn(8, 8).repeat(512, 1))
    step.labels = torch.zeros(4096, dtype=torch.long)
    step()
    assert 50 <= (forms.peak_bytes(step) - step.held_bytes()) / step.images.nbytes < 54  # each Tanh keeps its output


def test_step_of_training_leaves_the_weights(forms):
    network = timm.create_model("test_resnet", num_classes=5)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    step = forms.TrainingStep(network, torch.randn(4, 3, 64, 64))
    step(), step()
    assert all(torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())
    momentum = [state["momentum_buffer"] for state in step.optimizer.state.values()]
    assert len(momentum) == len(before) and sum(float(buffer.abs().sum()) for buffer in momentum) > 0


@pytest.mark.parametrize("bf16", [False, True])
def test_steps_are_in_the_precision_asked_for(forms, bf16):
    seen = []
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    network.register_forward_hook(lambda *values: seen.append(values[-1].dtype))
    for kind in (forms.InferenceStep, forms.TrainingStep):
        kind(network, torch.randn(2, 3, 2, 2), bf16)()
    assert seen == [torch.bfloat16 if bf16 else torch.float32] * 2
    assert network[1].weight.dtype == torch.float32


def test_ratios(cost):
    found = {
        "backbone": {"multiplications": 100, "peak_bytes": 1000},
        "wsms": {"multiplications": 130, "peak_bytes": 1200},
        "multi_scale": {"multiplications": 140, "peak_bytes": 1500},
    }
    times = {"backbone": [1.0, 2.0, 1.0], "wsms": [1.3, 2.4, 1.5], "multi_scale": [1.3, 3.0, 3.0]}
    found = cost.ratios(found, times)
    assert found["wsms_multiplications"] == 1.3 and found["wsms_peak"] == 1.2
    assert found["wsms_time"] == 1.3  # the median of 1.3, 1.2, 1.5
    assert found["wsms_quotient"] == 1.0 and found["wsms_to_multi_scale"] == 0.8
    line = {"backbone": "x", "batch": 16, "mode": "training", "compiled": False, "ratios": found | {"wsms_peak": 1.4}}
    assert "quotient 1.000 ok  peak ×1.400 (target 1.300)  of wrapper's time 0.800 ok" in cost.describe(line)


def test_every_form_has_a_turn_in_every_round_and_each_begins(forms):
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = forms.take_turns(steps, [], seconds=0, rounds=6)
    assert {name: len(each) for name, each in times.items()} == {"a": 6, "b": 6, "c": 6}
    rounds = [
        calls[start : start + 3] for start in range(3, len(calls), 3)
    ]  # after one call each for the number of calls
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds) and {each[0] for each in rounds} == {"a", "b", "c"}


def test_a_run_goes_on_where_it_stopped(cost, tmp_path, monkeypatch, capsys):
    out = tmp_path / "cost.json"
    argv = ["--models", "test_resnet", "--batch", "2", "--seconds", "0", "--rounds", "2", "--compiled", "0"]
    argv += ["--lines_only", "--out", str(out)]
    cost.main([*argv, "--modes", "inference"])
    (line,) = json.loads(out.read_text())["lines"]
    assert line["forms"].keys() == {"backbone", "wsms", "multi_scale", "backbone_fused", "wsms_fused"}
    assert line["forms"]["wsms"]["multiplications"] > line["forms"]["backbone"]["multiplications"] > 0
    assert line["rounds"] == 2 and line["ratios"]["wsms_time"] > 0 and not line["cannot"]
    assert capsys.readouterr().out.count("test_resnet") == 2  # as it is measured, and in the table

    measured = []
    monkeypatch.setattr(
        cost, "measure", lambda line, *_: measured.append(line["mode"]) or {"ratios": line_ratios(line)}
    )
    cost.main(argv)
    assert measured == ["training"] and len(json.loads(out.read_text())["lines"]) == 2
    monkeypatch.setattr(cost, "record", lambda: {"versions": {"torch": "another"}, "machine": {}})
    cost.main(argv)
    assert measured == ["training", "inference", "training"] and len(json.loads(out.read_text())["lines"]) == 2
    cost.main([*argv, "--fresh"])
    assert len(measured) == 5
    with pytest.raises(SystemExit, match="was measured on cpu in float32; name another file with --out"):
        cost.main([*argv, "--bf16"])
    cost.main([*argv, "--bf16", "--out", str(tmp_path / "bf16.json")])
    assert len(measured) == 7 and json.loads((tmp_path / "bf16.json").read_text())["precision"] == "bfloat16, mixed"


def line_ratios(line):
    return {"wsms_multiplications": 1.3, "wsms_time": 1.3, "wsms_quotient": 1.0}


def test_checkpointing_is_measured(cost):
    found = cost.measure_checkpointing("test_resnet")
    assert found.keys() == {"backbone", "wsms"}
    for each in found.values():
        assert each["ratio"] == pytest.approx(each["checkpointed"] / each["peak_bytes"], abs=1e-4)
        assert 0.1 < each["ratio"] < 1


@pytest.mark.sweep
def test_start_is_measured(cost):
    found = cost.measure_start(1)
    assert 0 < found["import_s"] < 5 and 0.5 < found["create_ratio"] < 5
