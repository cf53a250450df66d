"""Seeds that are trained at once: against single runs, PyTorch's own step, unfused norms; in float64 on the CPU."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.cifar10 import gpu_data, gpu_forms, gpu_norms
from benchmarks.cifar10.gpu_group import SeedGroup
from tests.helpers.table2 import CPU, MEAN, PLAIN, WSMS, augmenter, pixels

EXACT = {"dtype": torch.float64, "master": torch.float64}


def trained(form, seeds, epochs=1, **kwargs):
    group = SeedGroup(form, seeds, 2, CPU, batch=4, **EXACT, **kwargs)
    source = augmenter()
    for epoch in range(1, epochs + 1):
        group.begin_epoch(source, epoch, 0.01)
        for _ in range(2):
            group.step()
    return group


@pytest.mark.slow
@pytest.mark.parametrize("form", [PLAIN, WSMS, MEAN], ids=lambda form: form.name)
def test_stacked_seeds_are_single_runs_to_rounding(form):
    stacked = trained(form, (0, 3))
    for index, seed in enumerate((0, 3)):
        single = trained(form, (seed,))
        expected, found = single.state(0), stacked.state(index)
        assert expected.keys() == found.keys() and any("running_var" in key for key in found)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9, msg=key)
        assert stacked.train_loss()[index] == pytest.approx(single.train_loss()[0])
        images = torch.randn(6, 32, 32, 3, dtype=torch.float64)
        np.testing.assert_array_equal(stacked.predict(index, images), single.predict(0, images))


@pytest.mark.slow
def test_a_group_trains_as_pytorch_does():
    """Losses and weights after two steps, against the network itself with torch.optim.SGD."""
    group, source = trained(WSMS, (1,)), augmenter()
    network = gpu_forms.build(WSMS, 1).double()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    images, labels = torch.zeros(8, 32, 32, 3, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)
    source.fill(1, 1, images, labels)
    for some, classes in zip(images.split(4), labels.split(4), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(network(some.permute(0, 3, 1, 2)), classes).backward()
        optimizer.step()
    found = group.state(0)
    for name, value in network.named_parameters():
        torch.testing.assert_close(found[f"parameters.{name}"], value.detach(), rtol=1e-9, atol=1e-9, msg=name)
    for name, value in network.named_buffers():
        torch.testing.assert_close(found[f"buffers.{name}"], value, rtol=1e-9, atol=1e-9, msg=name)
    network.eval()
    np.testing.assert_array_equal(group.predict(0, images), network(images.permute(0, 3, 1, 2)).argmax(1).numpy())


@pytest.mark.slow
@pytest.mark.parametrize("function", [gpu_norms.norm_act, "compiled"], ids=["plain", "compiled"])
def test_fused_norms_change_nothing(function):
    if function == "compiled":  # as far as autograd, without the code generator
        function = gpu_norms.fused_function("aot_eager")
    expected, found = trained(WSMS, (1,)).state(0), trained(WSMS, (1,), norm_act=function).state(0)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(0,), (0, 1)], ids=["single", "stacked"])
def test_bfloat16_keeps_statistics_and_master_weights_in_float32(seeds):
    group = SeedGroup(WSMS, seeds, 1, CPU, batch=4)
    coarse, fine = group.segments
    assert {coarse.work.dtype, group.images.dtype} == {torch.bfloat16}
    assert {coarse.master.dtype, coarse.momentum.dtype, fine.work.dtype} == {torch.float32}
    assert {buffer.dtype for buffer in group.buffers.values()} == {torch.float32}
    assert all("bn" in name or "norm" in name for name in fine.leaves) and len(fine.leaves) > 40
    source = augmenter(torch.bfloat16)
    group.begin_epoch(source, 1, 1e-4)
    before, rounded = coarse.master.clone(), coarse.work.clone()
    group.step()
    kept, seen = ((now != was).float().mean() for now, was in ((coarse.master, before), (coarse.work, rounded)))
    assert kept > 0.9 > 0.5 > seen  # bfloat16 weights would swallow most steps
    torch.testing.assert_close(coarse.work, coarse.master.bfloat16(), rtol=0, atol=0)
    for index in range(len(seeds)):
        view = coarse.masters(index)["backbone.features.layer1.0.conv1.weight"]
        assert view.is_contiguous(memory_format=torch.channels_last)
    exact = SeedGroup(WSMS, seeds, 1, CPU, batch=4, **EXACT)
    exact.begin_epoch(augmenter(), 1, 1e-4)
    exact.step()
    torch.testing.assert_close(group.loss_sum.double(), exact.loss_sum, rtol=0.05, atol=0)
    for found, expected in zip(group.segments, exact.segments, strict=True):  # the step's gradients
        assert torch.cosine_similarity(found.momentum.double(), expected.momentum, 0) > 0.9


@pytest.mark.gpu
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_recorded_step_is_the_step(seeds):
    gpu = torch.device("cuda")
    source = gpu_data.Augmenter(*pixels(256), gpu, torch.float32)
    states = []
    for record in (False, True):
        group = SeedGroup(WSMS, seeds, 2, gpu, batch=64, dtype=torch.float32)
        if record:
            group.record()
        for epoch in (1, 2):
            group.begin_epoch(source, epoch, 0.01)
            group.step()
            group.step()
        torch.cuda.synchronize()
        assert group.position == 2
        states.append(group.state(len(seeds) - 1))
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-2, atol=1e-3, msg=key)
