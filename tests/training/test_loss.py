"""Losses and the mixing of images, against their formulas."""

import numpy as np
import pytest
import torch
from timm.data import Mixup

from timm_wsms.errors import UserError
from timm_wsms.network.mean_net import StageOutputs
from timm_wsms.training.loss import build_loss, build_mix, with_stages
from timm_wsms.training.settings import Settings

LOGITS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1, 1])


def one_hot(smoothing: float) -> torch.Tensor:
    return torch.eye(3)[LABELS] * (1 - smoothing) + smoothing / 3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_labels_and_of_mixed_labels(smoothing):
    loss = build_loss(Settings("a", label_smoothing=smoothing))
    by_hand = -(one_hot(smoothing) * (LOGITS - LOGITS.exp().sum(1, keepdim=True).log())).sum(1).mean()
    torch.testing.assert_close(loss(LOGITS, LABELS), by_hand)
    torch.testing.assert_close(loss(LOGITS, one_hot(smoothing)), by_hand)  # smoothed once, by the mixing


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_of_labels_and_of_mixed_labels(smoothing):
    loss = build_loss(Settings("a", loss="bce", label_smoothing=smoothing))
    p, y = LOGITS.sigmoid(), one_hot(smoothing)
    by_hand = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    torch.testing.assert_close(loss(LOGITS, LABELS), by_hand)
    torch.testing.assert_close(loss(LOGITS, y), by_hand)


def test_binary_cross_entropy_counts_mixed_labels_above_the_threshold_in_full():
    loss = build_loss(Settings("a", loss="bce", bce_threshold=0.2))
    mixed = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.9, 0.0], [0.0, 0.0, 1.0], [0.5, 0.0, 0.5]])
    y = torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1]])
    p = LOGITS.sigmoid()
    torch.testing.assert_close(loss(LOGITS, mixed), -(y * p.log() + (1 - y) * (1 - p).log()).mean())


STAGES = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(2)).double()  # logits: stages, images, classes
FEATURES = 2 * torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_of_each_stage_beside_that_of_their_mean(mixed):
    y = one_hot(0.2).double()
    labels = y if mixed else LABELS
    targets = y if mixed else one_hot(0.1)
    entropies = [-(targets * x.log_softmax(1)).sum(1).mean() for x in (*STAGES, STAGES.mean(0))]
    settings = Settings("a", label_smoothing=0.1, stage_loss=0.6)
    loss = with_stages(build_loss(settings), settings, (1.0, 0.5, 0.25))
    torch.testing.assert_close(loss(StageOutputs(STAGES), labels), entropies[3] + 0.6 / 3 * sum(entropies[:3]))


def no_loss(logits, labels):
    return logits.sum() * 0


def test_the_stages_are_taught_by_the_mean_of_the_logits_which_gets_no_gradient():
    logits = STAGES.clone().requires_grad_()
    settings = Settings("a", stage_distill=0.7, stage_distill_temperature=2.0)
    loss = with_stages(no_loss, settings, (1.0, 0.5, 0.25))(StageOutputs(logits), LABELS)
    q = (STAGES.mean(0) / 2).softmax(1)
    total, gradient = 0.0, torch.zeros_like(STAGES)
    for stage in range(3):
        p = (STAGES[stage] / 2).softmax(1)
        for image in range(4):
            divergence = sum(q[image, c] * (q[image, c] / p[image, c]).log() for c in range(3))
            total += 0.7 * 2**2 * divergence / (3 * 4)
        gradient[stage] = 0.7 * 2 * (p - q) / (3 * 4)  # q held fixed
    torch.testing.assert_close(loss, total)
    loss.backward()
    torch.testing.assert_close(logits.grad, gradient)


@pytest.mark.parametrize(("factors", "largest"), [((1.0, 0.5, 0.25), 0), ((1.0, 2.0, 0.5), 1)])
def test_the_stages_features_are_drawn_to_those_of_the_largest_image_which_get_no_gradient(factors, largest):
    features = FEATURES.clone().requires_grad_()
    loss = with_stages(no_loss, Settings("a", stage_consistency=0.3), factors)(StageOutputs(STAGES, features), LABELS)
    total, gradient = 0.0, torch.zeros_like(FEATURES)
    for stage in {0, 1, 2} - {largest}:
        difference = FEATURES[stage] - FEATURES[largest]
        quadratic, linear = difference.square() / 2, difference.abs() - 0.5
        total += 0.3 / 2 * torch.where(difference.abs() < 1, quadratic, linear).mean()
        gradient[stage] = 0.3 / 2 * difference.clamp(-1, 1) / difference.numel()
    torch.testing.assert_close(loss, total)
    loss.backward()
    torch.testing.assert_close(features.grad, gradient)


def test_images_are_mixed_as_timm_does_and_an_odd_one_goes():
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 2, 1, 1, 0])
    mix = build_mix(Settings("a", mixup=0.4, cutmix=1.0, label_smoothing=0.1), num_classes=3, micro_batch_size=6)
    for seed in range(6):  # mixup in some, cutmix in others
        np.random.seed(seed)
        got = mix(images.clone(), labels)
        np.random.seed(seed)
        expected = Mixup(0.4, 1.0, prob=1.0, switch_prob=0.5, label_smoothing=0.1, num_classes=3)(
            images[:4].clone(), labels[:4]
        )
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    unmixed = build_mix(Settings("a"), 3, 5)(images, labels)
    assert unmixed[0] is images and unmixed[1] is labels


def test_images_that_cannot_be_paired_are_refused():
    with pytest.raises(UserError, match=r"mixup and cutmix pair .* 5 of them .*--batch_size"):
        build_mix(Settings("a", mixup=0.1), 3, micro_batch_size=5)


def test_a_single_image_that_was_left_by_undecodable_ones_is_not_mixed_away():
    mix = build_mix(Settings("a", mixup=0.1), 3, micro_batch_size=2)
    with pytest.raises(UserError, match="only one could be decoded; fix the data"):
        mix(torch.randn(1, 3, 8, 8), torch.tensor([1]))
