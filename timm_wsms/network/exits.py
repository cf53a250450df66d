"""When to stop: temperatures and thresholds of a cascade, from the logits of its exits. No network is needed here.

Exit 1 knows the smallest image, exit 2 the two smallest, the last all of them. An image leaves at the first exit whose
confidence reaches its threshold; confidence is the largest probability after the exit's temperature.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

import torch

from timm_wsms.errors import UserError

LEVEL = 0.95  # confidence level of the bound on the loss of accuracy, one-sided
NEVER = 2.0  # a threshold that no confidence reaches
STEPS = 40  # thresholds that are tried
FITTED = 4  # one image in this many is for temperatures, the others are for thresholds
RESTRICTED = 0.1  # part of the error level for the bound on the share of differing images (Berger and Boos)
GRID = 24  # values of that share at which the test is evaluated
HOTTEST = 20.0  # the largest temperature; the smallest is its inverse


class Calibration(NamedTuple):
    """Temperatures and thresholds, and what is known of them.

    Attributes:
        confidence: Threshold of every exit but the last, E - 1 times the same; `NEVER` if none passed the test.
        temperatures: Temperatures of the same exits.
        images: Number of images that thresholds were tested on.
        drop: By how many points accuracy fell on these, compared with the last exit.
        p_value: For the hypothesis that it falls by more than allowed; at most 0.05 unless no threshold passed.
        exits: Number of these images that left at each exit, E numbers.
    """

    confidence: list[float]
    temperatures: list[float]
    images: int
    drop: float
    p_value: float
    exits: list[int]


def average_exits(logits: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """Logits of the stages (S, B, classes) → those of the exits (S, B, classes), in which the last is the mean of all.

    Args:
        logits: Logits of each stage, stage 1's first.
        order: The stages in the order in which they run, the smallest image first, counted from 0.
    """
    return torch.stack([logits[sorted(order[: known + 1])].mean(0) for known in range(len(order))])


def confidences(logits: torch.Tensor, temperatures: Sequence[float]) -> torch.Tensor:
    """Logits of E exits (E, B, classes) → the largest probability at each exit's temperature, (E, B)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    heat = torch.tensor([*temperatures], dtype=logits.dtype, device=logits.device)[:, None, None]
    return (logits / heat).softmax(-1).amax(-1)


def leave_at(confidence: torch.Tensor, thresholds: Sequence[float]) -> torch.Tensor:
    """Confidences (E - 1, B) → the exit at which each image leaves, from 0; E - 1 is the last. int64 (B,)."""
    least = torch.tensor([*thresholds], dtype=confidence.dtype, device=confidence.device)[:, None]
    sure = torch.cat([confidence >= least, torch.ones_like(confidence[:1], dtype=torch.bool)])
    return sure.int().argmax(0)  # the first maximum


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature at which the labels are most likely (Guo et al. 2017, On calibration of modern neural networks).

    Args:
        logits: (n, classes).
        labels: int64 (n,).

    Returns:
        The minimum of the mean negative log-likelihood between 1/20 and 20, by golden-section search: convex in the
        inverse temperature, it has only one.
    """
    logits = logits.double()

    def loss(log_heat: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / math.exp(log_heat), labels))

    golden = (math.sqrt(5) - 1) / 2
    low, high = -math.log(HOTTEST), math.log(HOTTEST)
    for _ in range(40):
        first, second = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, second) if loss(first) < loss(second) else (first, high)
    return math.exp((low + high) / 2)


def drop_p_value(lost: int, gained: int, images: int, max_drop: float) -> float:
    """p-value of the hypothesis that accuracy falls by `max_drop` points or more.

    Of independent images a share b is lost (right before, wrong now) and a share c gained; the fall is b - c. The test
    is exact: with T = lost - gained, p is the largest P(T' <= T) over all b, c with b - c = max_drop / 100. The unknown
    b + c is restricted to below its upper Clopper-Pearson bound at a tenth of the error level, which is added to p
    (Berger and Boos 1994, P values maximized over a confidence set for the nuisance parameter). The distribution of T'
    comes from its characteristic function; b + c goes over a grid of 24 values.

    Args:
        lost: Number of images lost.
        gained: Number of images gained.
        images: Number of all images, n.
        max_drop: In points, above 0.
    """
    fall, restricted = max_drop / 100, RESTRICTED * (1 - LEVEL)
    most = _upper_bound(lost + gained, images, restricted)
    if most <= fall:  # b + c cannot be smaller than b - c
        return restricted
    # T' lies within 12 standard deviations, and 60 where it is nearly a Poisson variable, but for less than 1e-15
    reach = min(images, images * fall + 12 * math.sqrt(images * most) + abs(lost - gained) + 60)
    size = 2 ** math.ceil(math.log2(2 * reach + 2))
    angle = torch.arange(size, dtype=torch.float64) * (2 * math.pi / size)
    differing = torch.linspace(fall, most, GRID, dtype=torch.float64)
    worst = 0.0
    for share in differing.tolist():
        b, c = (share + fall) / 2, (share - fall) / 2
        # E[exp(i T' angle)], of n independent steps of +1, -1, 0
        step = torch.complex((1 - share) + share * angle.cos(), (b - c) * angle.sin())
        chance = torch.fft.fftshift(torch.fft.fft(step**images).real / size)  # P(T' = -size / 2) …, the middle is 0
        worst = max(worst, float(chance[: size // 2 + lost - gained + 1].sum()))
    return min(1.0, worst + restricted)


def _upper_bound(count: int, images: int, level: float) -> float:
    """The largest share for which `count` or fewer in n are no less likely than `level` (Clopper and Pearson 1934)."""
    if count >= images:
        return 1.0
    k = torch.arange(count + 1, dtype=torch.float64)
    n = torch.tensor(float(images), dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    low, high = count / images, 1.0
    for _ in range(50):
        share = (low + high) / 2
        chance = torch.logsumexp(ways + k * math.log(share) + (n - k) * math.log1p(-share), 0).exp()
        low, high = (share, high) if chance > level else (low, share)
    return high


def images_needed(max_drop: float) -> int:
    """The smallest number of images, including those for temperatures, with which any threshold could pass the test."""
    low, high = 1, 2
    while drop_p_value(0, 0, high, max_drop) > 1 - LEVEL:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if drop_p_value(0, 0, middle, max_drop) > 1 - LEVEL else (low, middle)
    return math.ceil(high * FITTED / (FITTED - 1))


def check_count(images: int, max_drop: float) -> None:
    """Check that a threshold could pass the test with this many images.

    Raises:
        UserError: If `max_drop` is not a number of points, or there are too few images; says how many are needed.
    """
    if not (isinstance(max_drop, Real) and 0 < max_drop < 100):
        raise UserError(f"max_drop is {max_drop!r}; give points of accuracy between 0 and 100, such as 1")
    needed = images_needed(max_drop)
    if images < needed:
        raise UserError(
            f"{images} images are too few to show that accuracy falls by at most {max_drop:g} points; give at "
            f"least {needed}, or a larger max_drop"
        )


def choose_thresholds(logits: torch.Tensor, labels: torch.Tensor, max_drop: float = 1.0) -> Calibration:
    """The smallest threshold at which accuracy is shown to fall by at most `max_drop` points.

    Every fourth image is used to fit the temperatures and to choose 40 thresholds, each for all exits: quantiles of the
    confidences, from the highest down, and 0. They are then tested on the other images in this order, each at the level
    0.05, until one fails; the last that passed is used. Since the order does not depend on the images that are
    tested, the chance that accuracy on new images of the same distribution falls by more
    than `max_drop` is at most 0.05, however many thresholds are tried: Learn then Test (Angelopoulos, Bates, Candès,
    Jordan and Lei 2021, arXiv:2110.01052) with fixed-sequence testing. The test is that of `drop_p_value`.

    Args:
        logits: Of every exit (E, n, classes); accuracy is compared with the last exit's.
        labels: int64 (n,).
        max_drop: In points of accuracy.

    Raises:
        UserError: If `max_drop` is not a number of points, there are too few images for any threshold to pass, a label
            is not a class, or logits are not finite.
    """
    check_count(len(labels), max_drop)
    outside = labels[(labels < 0) | (labels >= logits.shape[-1])]
    if len(outside):
        raise UserError(
            f"{len(outside)} of {len(labels)} labels are outside the classes 0 to {logits.shape[-1] - 1}, such as "
            f"{int(outside[0])}; leave out images without a label"
        )
    broken = int((~logits.isfinite()).any(-1).any(0).sum())
    if broken:
        raise UserError(
            f"the logits of {broken} of {len(labels)} images are not finite; check these images, or use a wider dtype"
        )
    fitted = torch.arange(len(labels), device=labels.device) % FITTED == 0
    temperatures = [fit_temperature(exit_logits[fitted], labels[fitted]) for exit_logits in logits[:-1]]
    confidence = confidences(logits[:-1], temperatures)
    ranked = confidence[:, fitted].flatten().sort(descending=True).values
    places = [len(ranked) * step // STEPS - 1 for step in range(1, STEPS)]
    levels = [float(ranked[place]) for place in places if place >= 0]
    tested = confidence[:, ~fitted]
    right = logits[:, ~fitted].argmax(-1) == labels[~fitted]  # (E, tested)
    count = right.shape[1]
    found = Calibration(_same(NEVER, logits), temperatures, count, 0.0, 1.0, [0] * len(tested) + [count])
    for level in [*levels, 0.0]:
        leaves = leave_at(tested, _same(level, logits))
        ours = right.gather(0, leaves[None])[0]
        lost, gained = int((right[-1] & ~ours).sum()), int((ours & ~right[-1]).sum())
        p_value = drop_p_value(lost, gained, count, max_drop)
        if p_value > 1 - LEVEL:
            break
        exits = leaves.bincount(minlength=len(logits)).tolist()
        found = Calibration(_same(level, logits), temperatures, count, 100 * (lost - gained) / count, p_value, exits)
    return found


def _same(level: float, logits: torch.Tensor) -> list[float]:
    return [level] * (len(logits) - 1)
