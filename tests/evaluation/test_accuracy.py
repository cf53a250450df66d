"""Accuracy: against values worked out by hand, and on two processes against one."""

import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from tests.helpers.machine_runs import PAIR
from timm_wsms.errors import UserError
from timm_wsms.evaluation import Predictions, predict, top1, top5

# Logits of 4 samples for 6 classes; the true classes are 2, 0, 5, 1.
LOGITS = torch.tensor(
    [
        [0.0, 1.0, 9.0, 2.0, 3.0, 4.0],  # predicts 2: right
        [5.0, 6.0, 1.0, 2.0, 3.0, 4.0],  # predicts 1; class 0 is second
        [9.0, 8.0, 7.0, 6.0, 5.0, 4.0],  # predicts 0; class 5 is sixth
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],  # predicts 5; class 1 is fifth
    ]
)
LABELS = torch.tensor([2, 0, 5, 1])


class Lookup(nn.Module):
    """Gives the logits of the sample whose number stands in the image's only pixel."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.BatchNorm2d(1)
        self.table = nn.Parameter(LOGITS.clone())
        self.seen: dict[str, object] = {}

    def forward(self, images):  # (b, 1, 1, 1)
        self.seen = {
            "training": self.training,
            "gradients": torch.is_grad_enabled(),
            "bf16": torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16,
        }
        self.frozen(images + 5.0)  # would move the running mean in train mode
        return self.table[images.flatten().long()]


def batches(*groups):
    """Batches of the samples with these numbers."""
    return [
        (torch.tensor(group), torch.tensor(group, dtype=torch.float32).view(-1, 1, 1, 1), LABELS[list(group)])
        for group in groups
    ]


@pytest.fixture
def accelerator():
    yield from _accelerator("no")


@pytest.fixture
def accelerator_bf16():
    yield from _accelerator("bf16")


def _accelerator(precision):
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps the first precision of a process
    yield Accelerator(cpu=True, mixed_precision=precision)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_predictions_by_hand(accelerator):
    got = predict(Lookup(), batches([3, 1], [0, 2]), accelerator, size=4)
    np.testing.assert_array_equal(got.index, [0, 1, 2, 3])
    np.testing.assert_array_equal(got.label, [2, 0, 5, 1])
    np.testing.assert_array_equal(got.predicted, [2, 1, 0, 5])
    np.testing.assert_array_equal(got.in_top5, [True, True, False, True])
    np.testing.assert_array_equal(got.correct, [True, False, False, False])
    assert (top1(got), top5(got), len(got)) == (25.0, 75.0, 4)


def test_fewer_than_five_classes(accelerator):
    model = Lookup()
    model.table = nn.Parameter(LOGITS[:, :3])
    got = predict(model, batches([0], [1]), accelerator, size=2)
    assert (top1(got), top5(got)) == (50.0, 100.0)


def test_mode_gradients_and_statistics(accelerator):
    model = Lookup().train()
    model.frozen.eval()
    predict(model, batches([0, 1, 2, 3]), accelerator, size=4, progress=True)
    assert model.seen == {"training": False, "gradients": False, "bf16": False}
    assert model.training and not model.frozen.training
    model.train()
    predict(model, batches([0, 1, 2, 3]), accelerator, size=4)
    assert model.frozen.running_mean.item() == 0.0 and model.frozen.training


def test_precision_is_the_accelerators(accelerator_bf16):
    model = Lookup()
    predict(model, batches([0, 1, 2, 3]), accelerator_bf16, size=4)
    assert model.seen["bf16"]


def test_missing_and_repeated_samples(accelerator):
    with pytest.raises(UserError, match="3 samples were evaluated, but the data set has 4"):
        predict(Lookup(), batches([0, 1, 3]), accelerator, size=4)
    with pytest.raises(RuntimeError, match="more than once, the first of them number 1"):
        predict(Lookup(), batches([0, 1], [1, 3]), accelerator, size=4)


class Skipping(list):
    skipped = 0

    def __iter__(self):
        self.skipped = 0
        for batch in super().__iter__():
            self.skipped = 1  # counted while the rows are read
            yield batch


def test_skipped_samples_are_accounted_for(accelerator):
    got = predict(Lookup(), Skipping(batches([0, 3], [1])), accelerator, size=4)
    np.testing.assert_array_equal(got.index, [0, 1, 3])
    with pytest.raises(UserError, match="4 samples were evaluated, but the data set has 4 less 1 skipped"):
        predict(Lookup(), Skipping(batches([0, 3], [1, 2])), accelerator, size=4)


def test_accuracy_of_nothing():
    nothing = Predictions(*[np.zeros(0, dtype=np.int64)] * 3, in_top5=np.zeros(0, dtype=bool))
    with pytest.raises(ValueError, match="no predictions"):
        top1(nothing)


# Two processes with unequal shares: 6 samples in batches of 2, and 5 of them in batches of 1.
SAMPLES = 11


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 4 * 4, 7))


def samples():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(SAMPLES, 3, 4, 4, generator=generator)
    return torch.arange(SAMPLES), images, torch.randint(7, (SAMPLES,), generator=generator)


def share(rank, world_size):
    own = [tensor[rank::world_size] for tensor in samples()]
    return list(zip(*[tensor.split(2 - rank) for tensor in own], strict=True))


def run_process(folder):
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=60))  # instead of waiting for each other for ever
    accelerator = Accelerator(cpu=True, kwargs_handlers=[patience])
    rank = accelerator.process_index
    model = accelerator.prepare(network())
    next(model.buffers()).add_(3.0 * rank)  # running statistics drift apart while training
    assert len(predict(model, share(rank, 2)[:1] if rank == 0 else [], accelerator, size=2)) == 2  # none for rank 1
    got = predict(model, share(rank, accelerator.num_processes), accelerator, size=SAMPLES)
    np.savez(f"{folder}/{rank}.npz", **vars(got))
    accelerator.end_training()


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(launchers, tmp_path):
    code, text = launchers.launched(tmp_path / "log", PAIR, str(tmp_path), script=Path(__file__))
    assert code == 0, text
    index, images, labels = samples()
    model = network().eval()
    with torch.no_grad():
        logits = model(images)
        model[0].running_mean.add_(3.0)
        assert (model(images).argmax(1) != logits.argmax(1)).any()  # process 1's statistics would show
    for rank in range(2):
        got = np.load(tmp_path / f"{rank}.npz")
        np.testing.assert_array_equal(got["index"], index)
        np.testing.assert_array_equal(got["label"], labels)
        np.testing.assert_array_equal(got["predicted"], logits.argmax(1))
        order = logits.argsort(1, descending=True)[:, :5]
        np.testing.assert_array_equal(got["in_top5"], [label in row for label, row in zip(labels, order, strict=True)])


if __name__ == "__main__":
    run_process(sys.argv[1])


def test_logits_that_are_not_a_number_are_an_error(accelerator):
    model = Lookup()
    with torch.no_grad():
        model.table[1, 3] = float("nan")
    with pytest.raises(UserError, match=r"logits of 1 of 4 samples are not a number \(NaN\); check the network's weig"):
        predict(model, batches([0, 1], [2, 3]), accelerator, 4)
