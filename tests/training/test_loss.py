"""Losses and the mixing of images, against their formulas."""

import numpy as np
import pytest
import torch
from timm.data import Mixup

from timm_wsms.errors import UserError
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


@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_of_each_stage_beside_that_of_their_mean(mixed):
    logits = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(2)).double()
    y = one_hot(0.2).double()
    labels = y if mixed else LABELS
    entropies = [-((y if mixed else one_hot(0.1)) * x.log_softmax(1)).sum(1).mean() for x in (*logits, logits.mean(0))]
    loss = with_stages(build_loss(Settings("a", label_smoothing=0.1)), weight=0.6)
    torch.testing.assert_close(loss(logits, labels), entropies[3] + 0.6 / 3 * sum(entropies[:3]))


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
