"""Temperatures, thresholds and their test, against scipy and loops, and against simulated data of known accuracy."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import beta

from timm_wsms import UserError
from timm_wsms.network import exits


def by_convolution(lost, gained, images, max_drop):
    """The p-value from the distribution of a sum of steps of +1, 0, -1, added one by one."""
    fall, share = max_drop / 100, lost + gained
    most = beta.ppf(1 - 0.005, share + 1, images - share)
    if most <= fall:
        return 0.005
    worst = 0
    for differing in np.linspace(fall, most, 24):
        step = np.array([(differing - fall) / 2, 1 - differing, (differing + fall) / 2])
        chance = np.ones(1)
        for _ in range(images):
            chance = np.convolve(chance, step)  # from -images to images
        worst = max(worst, chance[: images + lost - gained + 1].sum())
    return worst + 0.005


@pytest.mark.parametrize(
    "case", [(3, 5, 200, 3.0), (3, 2, 200, 3.0), (0, 0, 300, 1.0), (12, 20, 500, 2.0), (5, 5, 40, 10.0)]
)
def test_the_p_value_is_exact(case):
    assert exits.drop_p_value(*case) == pytest.approx(by_convolution(*case), abs=1e-9)


def test_the_p_value_of_many_images_takes_no_time():
    fast = exits.drop_p_value(300, 280, 50_000, 0.1)
    deviation = np.sqrt(580) / 50_000  # about normal
    assert fast == pytest.approx(0.1274, abs=0.02) and deviation < 0.001
    assert exits.drop_p_value(40, 0, 40, 10.0) == 1 and exits.drop_p_value(0, 40, 40, 10.0) < 0.006


def test_a_fall_that_is_not_allowed_passes_in_at_most_one_of_twenty():
    """At the boundary; 400 experiments, so that a share of 0.05 has a standard deviation of 0.011."""
    random, images, fall, differing = np.random.default_rng(0), 300, 0.03, 0.05
    chances = [(differing + fall) / 2, (differing - fall) / 2, 1 - differing]
    drawn = random.multinomial(images, chances, size=400)
    pairs, times = np.unique(drawn[:, :2], axis=0, return_counts=True)
    passes = [exits.drop_p_value(lost, gained, images, 3.0) <= 0.05 for lost, gained in pairs.tolist()]
    assert 0 < (times * passes).sum() / 400 <= 0.07


def test_the_number_that_is_needed_is_the_smallest():
    for max_drop in (1.0, 5.0):
        needed = exits.images_needed(max_drop)
        tested = [images - -(-images // 4) for images in (needed, needed - 2)]
        assert exits.drop_p_value(0, 0, tested[0], max_drop) <= 0.05 < exits.drop_p_value(0, 0, tested[1], max_drop)


def test_averages_follow_the_order_of_the_images():
    logits = torch.randn(3, 4, 5)
    found = exits.average_exits(logits, [2, 0, 1])
    expected = [logits[2], (logits[0] + logits[2]) / 2, logits.sum(0) / 3]
    torch.testing.assert_close(found, torch.stack(expected))
    assert torch.equal(found[-1], logits.mean(0))


def test_the_exit_is_the_first_whose_confidence_is_reached():
    confidence = torch.tensor([[0.9, 0.5, 0.5, 0.2], [0.1, 0.8, 0.7, 0.2]])
    assert exits.leave_at(confidence, [0.9, 0.75]).tolist() == [0, 1, 2, 2]
    assert exits.leave_at(confidence, [0.0, 0.0]).tolist() == [0, 0, 0, 0]
    assert exits.leave_at(confidence, [2.0, 2.0]).tolist() == [2, 2, 2, 2]


def test_confidence_is_the_largest_probability_at_the_temperature():
    logits = torch.randn(2, 6, 4, dtype=torch.float64)
    found = exits.confidences(logits, [0.5, 3.0])
    for place, heat in enumerate((0.5, 3.0)):
        powers = np.exp(logits[place].numpy() / heat)
        np.testing.assert_allclose(found[place].numpy(), (powers / powers.sum(1, keepdims=True)).max(1), rtol=1e-6)


def data(images, accuracy, seed=0, classes=10, heat=2.5):
    """Labels, and logits (exits, images, classes) whose probabilities are right once they are divided by `heat`."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=random)
    found = []
    for sharpness in accuracy:
        logits = sharpness * torch.randn(images, classes, generator=random, dtype=torch.float64)
        drawn = torch.distributions.Categorical(logits=logits)
        torch.manual_seed(seed + len(found))
        shift = (labels - drawn.sample()) % classes  # turn each row so that the class that was drawn is the label
        places = (torch.arange(classes) - shift[:, None]) % classes
        found.append(heat * logits.gather(1, places))
    return torch.stack(found), labels


def test_the_temperature_is_that_of_scipy_and_of_the_data():
    logits, labels = data(5_000, [3.0])

    def loss(heat):
        return torch.nn.functional.cross_entropy(logits[0] / heat, labels).item()

    found = exits.fit_temperature(logits[0], labels)
    assert found == pytest.approx(minimize_scalar(loss, bounds=(0.05, 20), method="bounded").x, rel=1e-3)
    assert found == pytest.approx(2.5, rel=0.08)
    sure = 5 * torch.nn.functional.one_hot(labels, 10).double()
    assert exits.fit_temperature(sure, labels) < 0.2  # never wrong; the loss is 0 below


def test_the_smallest_threshold_that_passes_is_taken():
    """Against a loop over images, written down for one exit."""
    logits, labels = data(8000, [4.0, 6.0])
    found = exits.choose_thresholds(logits, labels, max_drop=2.0)
    assert found.p_value <= 0.05 and 0 < found.confidence[0] < 1 and found.images == 6000
    heat = exits.fit_temperature(logits[0, ::4], labels[::4])
    assert found.temperatures == [heat]

    def experiment(level):
        counts = [0, 0, 0]  # lost, gained, left early
        for place in range(8000):
            if place % 4:
                sure = (logits[0, place] / heat).softmax(0).max() >= level
                ours = logits[0 if sure else 1, place].argmax() == labels[place]
                whole = logits[1, place].argmax() == labels[place]
                counts = [counts[0] + int(whole & ~ours), counts[1] + int(ours & ~whole), counts[2] + int(sure)]
        return counts

    lost, gained, early = experiment(found.confidence[0])
    assert found.drop == pytest.approx(100 * (lost - gained) / 6000)
    assert found.exits == [early, 6000 - early]
    assert found.p_value == pytest.approx(exits.drop_p_value(lost, gained, 6000, 2.0))
    ranked = np.sort((logits[0, ::4] / heat).softmax(1).amax(1).numpy())[::-1]
    levels = [*(ranked[2000 * step // 40 - 1] for step in range(1, 40)), 0.0]
    (place,) = np.flatnonzero(np.isclose(levels, found.confidence[0], atol=0, rtol=1e-9))
    lost, gained, _ = experiment(levels[place + 1])
    assert exits.drop_p_value(lost, gained, 6000, 2.0) > 0.05


def test_equal_exits_need_no_large_image_and_hopeless_ones_always_do():
    logits, labels = data(2000, [4.0, 4.0])
    same = exits.choose_thresholds(torch.stack([logits[1], logits[1]]), labels)
    assert same.confidence == [0.0] and same.drop == 0 and same.exits == [1500, 0]
    wrong = torch.stack([-logits[1], logits[1]])  # sure of the least likely class
    found = exits.choose_thresholds(wrong, labels)
    assert found.confidence == [exits.NEVER] and found.exits == [0, 1500] and found.p_value == 1


@pytest.mark.slow  # many calibrations
def test_the_fall_on_new_images_is_as_promised():
    """20 calibrations; the fall on 20,000 new images exceeds what was allowed in at most 5 % of them, here in none."""
    new, new_labels = data(20_000, [3.0, 4.0], seed=1000)
    exceeded = []
    for seed in range(20):
        found = exits.choose_thresholds(*data(1200, [3.0, 4.0], seed), max_drop=3.0)
        leaves = exits.leave_at(exits.confidences(new[:-1], found.temperatures), found.confidence)
        right = new.argmax(-1) == new_labels
        drop = right[-1].double().mean() - right.gather(0, leaves[None])[0].double().mean()
        exceeded.append(float(drop) > 0.03)
    assert sum(exceeded) <= 3


@pytest.mark.parametrize("max_drop", [0, -1, 100, float("nan")])
def test_what_is_no_number_of_points_is_refused(max_drop):
    with pytest.raises(UserError, match="max_drop"):
        exits.choose_thresholds(*data(100, [1.0, 1.0]), max_drop)


def test_too_few_images_are_refused_with_the_number_needed():
    needed = exits.images_needed(1.0)
    logits, labels = data(needed, [4.0, 4.0])
    with pytest.raises(UserError, match=f"^{needed - 1} images .* at least {needed}, or a larger max_drop$"):
        exits.choose_thresholds(logits[:, 1:], labels[1:])
    same = torch.stack([logits[1], logits[1]])
    assert exits.choose_thresholds(same, labels).confidence == [0.0]
