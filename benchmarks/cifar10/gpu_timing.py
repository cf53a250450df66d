"""Which way of training several seeds at once is fastest on this GPU, and how many of them fit into the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from benchmarks.cifar10.gpu_forms import BATCH, EPOCHS, Form
from benchmarks.cifar10.gpu_group import SeedGroup
from benchmarks.cifar10.gpu_norms import fused_function
from benchmarks.common.sweep import PLAIN

KINDS = ((1, False), (4, False), (1, True), (2, False))  # seeds per stack, norms fused or not
MOST = 4  # seeds at once
COMPILE = 25.0  # seconds that the first fused network is given
WANTED = 5  # pairs, as many as the paper's runs
OVERHEAD, MARGIN = 12.0, 1.05  # seconds to build, record and evaluate a round; for images of an epoch and checkpoints


@dataclass(frozen=True)
class Variant:
    """So many stacks of so many seeds, each stack with a CUDA graph and a stream of its own."""

    streams: int
    stack: int = 1
    fused: bool = False

    @property
    def seeds(self) -> int:
        return self.streams * self.stack

    def __str__(self) -> str:
        return f"{self.streams} streams × {self.stack} stacked seeds{', norms fused' if self.fused else ''}"


@dataclass(frozen=True)
class Setting:
    """Where and how groups are built."""

    device: torch.device
    steps: int
    batch: int = BATCH
    dtype: torch.dtype = torch.bfloat16

    def groups(self, form: Form, seeds: Sequence[int], variant: Variant) -> list[SeedGroup]:
        """The seeds in stacks, recorded if there is a GPU."""
        function = fused_function() if variant.fused else None
        parts = [seeds[start : start + variant.stack] for start in range(0, len(seeds), variant.stack)]
        groups = [
            SeedGroup(form, part, self.steps, self.device, self.batch, self.dtype, norm_act=function) for part in parts
        ]
        for group in groups:
            if self.device.type == "cuda":
                group.record()
        return groups

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Timing:
    """Milliseconds that a step of all seeds at once takes, of one form after the other."""

    variant: Variant
    ms: dict[str, float] = field(hash=False)

    def seconds(self, epochs: int, steps: int) -> float:
        """Of a round: all seeds of every form."""
        return OVERHEAD + MARGIN * epochs * steps * sum(self.ms.values()) / 1000


@dataclass(frozen=True)
class Plan:
    """What is trained.

    Attributes:
        variant: How.
        pairs: Seeds of the plain and of the WSMS network.
        epochs: Fewer than the paper's 164 only where that was allowed.
    """

    variant: Variant
    pairs: int
    epochs: int

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def seconds(self, timings: Sequence[dict[str, Any]], steps: int) -> float:
        """That a round of the plain network takes, the cheapest one; 0 if its variant was not timed."""
        ms = [one["ms"][PLAIN] for one in timings if Variant(**one["variant"]) == self.variant]
        return Timing(self.variant, {PLAIN: ms[0]}).seconds(self.epochs, steps) if ms else 0.0

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Plan:
        return cls(Variant(**plain["variant"]), plain["pairs"], plain["epochs"])


def measure(forms: Sequence[Form], setting: Setting, seconds: float, calls: int = 20) -> Iterator[Timing]:
    """Times the variants on images that need not be there yet, until it has taken `seconds`.

    A further variant is begun only if one that takes as long as the last would end in time; the first is always. One
    that fails on this machine, or computes something else than the first, is left out.
    """
    began = time.perf_counter()
    expected: dict[str, tuple[float, float]] = {}
    short = replace(setting, steps=1)  # of a step's images
    for stack, fused in KINDS:
        groups: dict[str, list[SeedGroup]] = {form.name: [] for form in forms}
        took = COMPILE if fused and setting.device.type == "cuda" else 0.0
        for streams in range(1, MOST // stack + 1):
            at = time.perf_counter()
            if at - began + took > seconds and (stack, fused, streams) != (*KINDS[0], 1):
                break
            variant = Variant(streams, stack, fused)
            try:
                for form in forms:
                    (group,) = short.groups(form, range(stack), Variant(1, stack, fused))
                    found = _fingerprint(group, setting)
                    _compare(found, expected.setdefault(form.name, found))
                    groups[form.name].append(group)
                ms = {name: _milliseconds(several, calls, setting) for name, several in groups.items()}
            except RuntimeError as error:  # of the compiler too; a variant is not worth the whole call
                print(f"{variant}: {type(error).__name__}: {str(error).splitlines()[0][:200]}", flush=True)
                break
            timing = Timing(variant, ms)
            took = time.perf_counter() - at
            print(f"{describe(timing)} ({took:.0f} s)", flush=True)
            yield timing
    print(f"timing took {time.perf_counter() - began:.0f} s", flush=True)


def _fingerprint(group: SeedGroup, setting: Setting) -> tuple[float, float]:
    """Loss, and length of the gradient, of the first seed in a step on random images. Its learning rate is still 0."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(group.images.shape[1:], generator=generator).to(group.images)
    labels = torch.randint(10, group.labels.shape[1:], generator=generator).to(group.labels)
    momenta = [segment.momentum for segment in group.segments]
    setting.wait()
    group.images.copy_(images)  # to all seeds
    group.labels.copy_(labels)
    for tensor in (group.position, group.loss_sum, *momenta):
        tensor.zero_()
    setting.wait()
    group.step()
    setting.wait()
    squares = [value.float().square().sum() for segment in group.segments for value in segment.momenta(0).values()]
    return group.loss_sum[0].item(), sum(squares).sqrt().item()


def _compare(found: tuple[float, float], expected: tuple[float, float]) -> None:
    """Raise a RuntimeError unless they are equal to a few roundings of bfloat16."""
    if any(not abs(one - other) <= 0.1 * abs(other) for one, other in zip(found, expected, strict=True)):
        raise RuntimeError(f"loss and gradient {found} are not those of the first variant, {expected}")


def _milliseconds(groups: Sequence[SeedGroup], calls: int, setting: Setting) -> float:
    """Mean time of a step of all groups, once all are under way."""
    for timed in (False, True):
        setting.wait()
        at = time.perf_counter()
        for _ in range(calls if timed else 3):
            for group in groups:
                with group.on_stream():
                    group.position.zero_()  # there are images for one step only
                group.step()
        setting.wait()
    return 1000 * (time.perf_counter() - at) / calls


def describe(timing: Timing) -> str:
    each = ", ".join(f"{name} {ms / timing.variant.seeds:.2f}" for name, ms in timing.ms.items())
    return f"{timing.variant!s:44} ms per step and seed: {each}"


def choose(timings: Sequence[Timing], left: float, steps: int, short: bool, say: Callable[[str], None] = print) -> Plan:
    """The variant by which the most pairs of seeds fit into the seconds left.

    If fewer than 2 + 2 fit, it says so. Then, with `short`, the paper's schedule is shortened to what fits; without it
    the runs are begun, and a later call goes on.
    """
    fits = {
        timing: min(WANTED, int(left // timing.seconds(EPOCHS, steps)) * timing.variant.seeds) for timing in timings
    }
    per_pair = {timing: timing.seconds(EPOCHS, steps) / timing.variant.seeds for timing in timings}
    best = max(timings, key=lambda timing: (fits[timing], -per_pair[timing]))
    pairs = fits[best]
    say(f"{left:.0f} s are left: {pairs} + {pairs} seeds fit by {best.variant}, {per_pair[best]:.0f} s a pair")
    if pairs >= 2:
        return Plan(best.variant, pairs, EPOCHS)
    say("fewer than 2 + 2 seeds fit with the paper's schedule of 164 epochs")
    if not short:
        return Plan(best.variant, max(2, best.variant.seeds), EPOCHS)

    def epochs(timing: Timing) -> int:
        """That fit, in as many rounds as 2 pairs take."""
        rounds = -(-2 // timing.variant.seeds)
        per_epoch = timing.seconds(1, steps) - OVERHEAD
        return min(EPOCHS, int((left / rounds - OVERHEAD) / per_epoch))

    best = max(timings, key=epochs)
    number = max(1, epochs(best))
    say(f"a shorter schedule, NOT THE PAPER'S: {number} epochs, 2 + 2 seeds by {best.variant}")
    return Plan(best.variant, max(2, best.variant.seeds), number)
