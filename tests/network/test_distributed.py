"""Two gloo processes under DistributedDataParallel with its default flags, against one process."""

import itertools
import os
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import timm_wsms  # noqa: F401  registers the names
from tests.helpers.machine_runs import PAIR

pytestmark = pytest.mark.slow  # starts two processes

PROCESSES = 2
BATCH = 4  # a process
FUSIONS = ("concat", "mean")


def network(fusion):
    torch.manual_seed(0)
    model = timm.create_model("wsms_test_resnet", num_classes=5, fusion=fusion).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.copy_(torch.rand_like(tensor) + 0.5)
    return model


def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(PROCESSES * BATCH, 3, 64, 64, generator=generator, dtype=torch.float64)
    return images, torch.randint(5, (PROCESSES * BATCH,), generator=generator)


def step(model, part, training):
    """Gradients of one step on a part of the batch."""
    model.zero_grad()
    images, labels = batch()
    nn.functional.cross_entropy(model.train(training)(images[part]), labels[part]).backward()
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    return {name: parameter.grad.clone() for name, parameter in inner.named_parameters()}


def process(rank, folder):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group(
        "gloo", store, timedelta(seconds=120), world_size=PROCESSES, rank=rank
    )  # fmt: skip
    part = slice(rank * BATCH, (rank + 1) * BATCH)
    found = {}
    for fusion, training in itertools.product(FUSIONS, (False, True)):
        model = DistributedDataParallel(network(fusion))
        step(model, part, training)
        gradients = step(model, part, training)  # it raises if a parameter went unused in the first
        found |= {f"{fusion} {training} {name}": gradient.contiguous() for name, gradient in gradients.items()}
    save_file(found, f"{folder}/{rank}.safetensors")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def distributed(launchers, tmp_path_factory):
    """Gradients of each process: rank → "fusion training parameter" → tensor."""
    folder = tmp_path_factory.mktemp("ddp")
    code, text = launchers.launched(folder / "log", PAIR, str(folder), script=Path(__file__))
    assert code == 0, text
    return [load_file(folder / f"{rank}.safetensors") for rank in range(PROCESSES)]


def check(distributed, fusion, training, expected):
    for gradients in distributed:
        start = f"{fusion} {training} "
        found = {key.removeprefix(start): gradient for key, gradient in gradients.items() if key.startswith(start)}
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert gradient.abs().max() > 0, name
            torch.testing.assert_close(
                found[name], gradient, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("fusion", FUSIONS)
def test_with_fixed_statistics_gradients_are_those_of_one_process_on_the_whole_batch(distributed, fusion):
    check(distributed, fusion, False, step(network(fusion), slice(None), training=False))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_with_batch_statistics_gradients_are_the_average_of_the_two_halves(distributed, fusion):
    parts = [slice(rank * BATCH, (rank + 1) * BATCH) for rank in range(PROCESSES)]
    halves = [step(network(fusion), part, training=True) for part in parts]
    average = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
    check(distributed, fusion, True, average)
    whole = step(
        network(fusion), slice(None), training=True
    )  # which is another thing: each half has its own statistics
    name = "backbone.conv1.0.weight"
    assert (whole[name] - average[name]).abs().max() > 1e-6


if __name__ == "__main__":
    process(int(os.environ["RANK"]), sys.argv[1])
