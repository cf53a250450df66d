"""Stages side by side in threads against the network itself, and what is refused."""

import contextlib
import copy
import threading

import pytest
import timm
import torch
from torch._dynamo.exc import TorchDynamoException

import timm_wsms
from tests.helpers.networks import randomize
from timm_wsms.network import parallel_stages

CASES = {
    "CNN": ("wsms_test_resnet", {}, 96),
    "averaged": ("wsmean_test_resnet", {"pyramid": [1, 0.71, 0.5]}, 96),
    "padded": ("wsms_test_resnet", {}, 90),
    "tokens": ("wsms_test_vit", {}, 160),
    "averaged tokens": ("wsmean_test_vit", {}, 160),
    "windows": ("wsms_swin_tiny_patch4_window7_224", {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": 24}, 64),
    "one stage": ("wsms_test_resnet", {"stages": 1}, 64),
    "own stages": ("ms_test_resnet", {}, 64),
}


def network(case: str):
    name, arguments, side = CASES[case]
    torch.manual_seed(0)
    model = randomize(timm.create_model(name, num_classes=7, **arguments)).eval()
    return model, torch.randn(2, 3, side, side)


@pytest.mark.parametrize("case", CASES)
def test_it_gives_what_the_network_gives(case):
    model, x = network(case)
    fast = timm_wsms.parallel_stages(model)
    with torch.no_grad():
        expected = model(x)
    assert expected.std() > 1e-4
    for _ in range(2):  # the threads are there the second time
        found = fast(x)
        assert not found.requires_grad
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["CNN", "averaged"])
def test_each_stage_has_a_thread_and_this_one_has_its_number_of_threads_afterwards(case, monkeypatch):
    monkeypatch.setattr(parallel_stages, "usable_cores", lambda: 100)
    model, x = network(case)
    ran, inside = {}, {}

    def note(number):
        def hook(*_):
            ran[number], inside[number] = threading.get_ident(), torch.get_num_threads()

        return hook

    for number, part in enumerate(model.backbones()):
        part.layer1.register_forward_pre_hook(note(number))
    before = torch.get_num_threads()
    timm_wsms.parallel_stages(model, threads_per_stage=before + 2)(x)
    assert torch.get_num_threads() == before
    assert ran[0] == threading.get_ident() and len({*ran.values()}) == 3
    assert {*inside.values()} == {before + 2}


def test_with_two_cores_the_other_stages_share_a_thread(monkeypatch):
    monkeypatch.setattr(parallel_stages, "usable_cores", lambda: 2)
    model, x = network("averaged")
    ran = []
    for part in model.backbones():
        part.layer1.register_forward_pre_hook(lambda *_: ran.append(threading.get_ident()))
    with torch.no_grad():
        expected = model(x)
    ran.clear()
    torch.testing.assert_close(timm_wsms.parallel_stages(model)(x), expected, rtol=1e-5, atol=1e-6)
    assert len(ran) == 3 and len({*ran}) == 2


def test_the_modes_of_the_caller_hold_in_every_stage():
    model, x = network("averaged")
    fast = timm_wsms.parallel_stages(model)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected, found = model(x), fast(x)
    assert found.dtype == torch.bfloat16 and found.is_inference()
    assert torch.equal(found, expected)
    assert fast(x).dtype == torch.float32


def test_an_error_in_a_stage_reaches_the_caller():
    model, _ = network("averaged")
    fast = timm_wsms.parallel_stages(model)
    with pytest.raises(RuntimeError, match="channels"):
        fast(torch.randn(1, 4, 96, 96))
    model.stages["2"].backbone.conv1.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fast(torch.randn(1, 3, 96, 96))


def test_a_copy_has_threads_of_its_own():
    model, x = network("averaged")
    fast = timm_wsms.parallel_stages(model)
    expected = fast(x)
    copied = copy.deepcopy(fast)
    assert torch.equal(copied(x), expected) and copied._threads is not fast._threads


def test_what_is_refused_is_one_line_that_says_what_to_do():
    model, x = network("averaged")
    with pytest.raises(timm_wsms.UserError, match=r"call model\.eval\(\) first"):
        timm_wsms.parallel_stages(model.train())
    fast = timm_wsms.parallel_stages(model.eval())
    with pytest.raises(timm_wsms.UserError, match="for inference"):
        fast.train()
    assert not fast.training and not model.training
    model.train()
    with pytest.raises(timm_wsms.UserError, match="for inference"):
        fast(x)
    model.eval()
    with pytest.raises(timm_wsms.UserError, match="at least 1"):
        timm_wsms.parallel_stages(model, 0)
    with pytest.raises(timm_wsms.UserError, match="not ResNet"):
        timm_wsms.parallel_stages(model.backbone)


@pytest.mark.parametrize(
    "compile_it",
    [
        lambda fast, x: fast.compile(),
        lambda fast, x: torch.compile(fast, backend="eager")(x),
        lambda fast, x: torch.compile(torch.nn.Sequential(torch.nn.ReLU(), fast), backend="eager")(x),
        lambda fast, x: torch.compile(lambda images: fast(images) + 1, backend="eager", fullgraph=True)(x),
        lambda fast, x: torch.export.export(fast, (x,), strict=True),
        lambda fast, x: torch.export.export(fast, (x,), strict=False),
        lambda fast, x: torch.jit.trace(fast, x),
        lambda fast, x: torch.fx.symbolic_trace(fast),
    ],
    ids=["compile", "torch.compile", "inside another", "in a function", "export, strict", "export", "trace", "fx"],
)
def test_threads_are_neither_compiled_nor_exported(compile_it):
    """PyTorch reports our exception as its own where it compiles; the message is in its first line."""
    model, x = network("averaged")
    fast = timm_wsms.parallel_stages(model)
    for _ in range(2):  # what failed once is not run uncompiled afterwards
        with pytest.raises((timm_wsms.UserError, TorchDynamoException)) as error:
            compile_it(fast, x)
        assert str(error.value).splitlines()[0].endswith("compile or export the model itself")
    assert torch.equal(fast(x), model(x))


# ---- on a GPU, whose calls are noted here instead of made


class Device:
    """Stands in for `torch.cuda`: notes in which order streams wait for one another and what runs on which."""

    def __init__(self, monkeypatch):
        self.events, self.now, self.made = [], "main", 0
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream(self, self.now))
        monkeypatch.setattr(torch.cuda, "Stream", self.make)
        monkeypatch.setattr(torch.cuda, "stream", self.running_on)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: self.events.append(("kept", stream.name)))

    def make(self):
        self.made += 1
        return Stream(self, f"side {self.made}")

    @contextlib.contextmanager
    def running_on(self, stream):
        before, self.now = self.now, stream.name
        yield
        self.now = before


class Stream:
    def __init__(self, device, name):
        self.device, self.name = device, name

    def wait_stream(self, other):
        self.device.events.append((self.name, "waits for", other.name))


@pytest.mark.parametrize("case", ["CNN", "averaged"])
def test_on_a_gpu_each_stage_has_a_stream(case, monkeypatch):
    model, x = network(case)
    with torch.no_grad():
        expected = model(x)
    device = Device(monkeypatch)
    for number, part in enumerate(model.backbones(), start=1):
        part.conv1.register_forward_pre_hook(lambda *_, n=number: device.events.append((device.now, "runs", n)))
    fast = timm_wsms.parallel_stages(model)
    monkeypatch.setattr(parallel_stages, "_is_on_gpu", lambda _: True)
    torch.testing.assert_close(fast(x), expected)
    assert device.events == [
        ("side 1", "waits for", "main"),
        ("side 1", "runs", 2),
        ("side 2", "waits for", "main"),
        ("side 2", "runs", 3),
        ("main", "runs", 1),
        ("main", "waits for", "side 1"),
        ("main", "waits for", "side 2"),
        ("kept", "main"),
        ("kept", "main"),
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["CNN", "averaged"])
def test_in_a_cuda_graph(case):
    model, x = network(case)
    model, x = model.cuda(), x.cuda()
    with torch.no_grad():
        expected = [model(x), model(x.flip(-1))]
    fast = torch.cuda.make_graphed_callables(timm_wsms.parallel_stages(model), (x.clone(),))
    for image, logits in zip((x, x.flip(-1)), expected, strict=True):
        torch.testing.assert_close(fast(image), logits, rtol=1e-3, atol=1e-3)
