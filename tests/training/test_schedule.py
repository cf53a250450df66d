"""Schedules: the learning rate of every epoch of the paper's recipes, and PyTorch's and timm's formulas by hand."""

import math

import pytest
import torch

from tests.helpers.paths import ROOT
from timm_wsms.training.schedule import Schedule
from timm_wsms.training.settings import ScheduleSettings, Settings, parse

RECIPES = ROOT / "recipes"


def rates(settings: Settings, updates_per_epoch: int) -> list[float]:
    """The learning rate of every update of a run."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=settings.lr)
    schedule = Schedule(optimizer, settings, updates_per_epoch)
    result = []
    for update in range(settings.epochs * updates_per_epoch):
        assert schedule.set(update) == optimizer.param_groups[0]["lr"]
        result.append(optimizer.param_groups[0]["lr"])
    return result


PAPER = {  # epochs counted from 1: (first, last, learning rate)
    "resnet110": [(1, 1, 0.01), (2, 81, 0.1), (82, 122, 0.01), (123, 164, 0.001)],
    "densenet100_k24": [(1, 149, 0.1), (150, 224, 0.01), (225, 300, 0.001)],
    "imagenet": [(1, 29, 0.1), (30, 59, 0.01), (60, 90, 0.001)],
}


@pytest.mark.parametrize(
    ("recipe", "spans"),
    [
        ("cifar10_resnet110", PAPER["resnet110"]),
        ("cifar100_resnet110", PAPER["resnet110"]),
        ("cifar10_densenet100_k24", PAPER["densenet100_k24"]),
        ("cifar100_densenet100_k24", PAPER["densenet100_k24"]),
        ("imagenet_resnet50", PAPER["imagenet"]),
        ("imagenet_resnet101", PAPER["imagenet"]),
        ("imagenet_resnet152", PAPER["imagenet"]),
    ],
)
def test_the_papers_learning_rate_in_every_epoch(recipe, spans):
    settings = parse(["--recipe", str(RECIPES / f"{recipe}.yaml")])
    expected = [rate for first, last, rate in spans for _ in range(first, last + 1)]
    assert settings.epochs == len(expected)
    got = rates(settings, updates_per_epoch=3)
    assert got == pytest.approx([rate for rate in expected for _ in range(3)], rel=1e-12)


def test_constant():
    assert rates(Settings("a", lr=0.3, epochs=4), 2) == [0.3] * 8


def test_cosine_changes_with_every_update_after_a_linear_warm_up():
    schedule = ScheduleSettings("cosine", min_lr=0.01, warmup_epochs=2, warmup_lr=0.001)
    got = rates(Settings("a", lr=0.5, epochs=10, schedule=schedule), 5)
    warm_up = [0.001 + (0.5 - 0.001) * update / 10 for update in range(10)]
    cosine = [0.01 + (0.5 - 0.01) * (1 + math.cos(math.pi * update / 50)) / 2 for update in range(10, 50)]
    assert got == pytest.approx(warm_up + cosine, rel=1e-12)


def test_onecycle_is_pytorchs():
    schedule = ScheduleSettings("onecycle", pct_start=0.25, div_factor=10, final_div_factor=100)
    got = rates(Settings("a", lr=0.4, epochs=5, schedule=schedule), 8)

    def between(start: float, end: float, part: float) -> float:
        return end + (start - end) / 2 * (1 + math.cos(math.pi * part))

    peak, last = 0.25 * 40 - 1, 39  # numbers of the updates with the highest and the lowest rate
    expected = [between(0.04, 0.4, update / peak) for update in range(10)]
    expected += [between(0.4, 0.0004, (update - peak) / (last - peak)) for update in range(10, 40)]
    assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["constant", "step", "cosine", "onecycle"])
def test_the_number_of_the_update_is_all_that_a_resumed_run_needs(name):
    settings = Settings("a", lr=0.4, epochs=6, schedule=ScheduleSettings(name, milestones=[2, 4], warmup_epochs=1))
    whole = rates(settings, 5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=settings.lr)
    schedule = Schedule(optimizer, settings, 5)
    assert [schedule.set(update) for update in (17, 3, 29)] == [whole[17], whole[3], whole[29]]


def test_no_warning_and_momentum_left_alone(recwarn):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    settings = Settings("a", epochs=2, schedule=ScheduleSettings("onecycle"))
    schedule = Schedule(optimizer, settings, 4)
    for update in range(8):
        schedule.set(update)
        assert optimizer.param_groups[0]["momentum"] == 0.9
    assert not recwarn.list
