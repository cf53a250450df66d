"""Which images of a split are taken: a part of it, a sample, or what is kept back for evaluation."""

import numpy as np

from timm_wsms.data.split_names import SplitName


def ranks_in_class(labels: np.ndarray) -> np.ndarray:
    """Number of each image among those of its class, from 0, int64 (n,)."""
    order = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[order], labels[order])  # place of the first image of the same class, in `order`
    ranks = np.empty(len(labels), np.int64)
    ranks[order] = np.arange(len(labels)) - first
    return ranks


def is_sorted(labels: np.ndarray) -> bool:
    """Whether images come class by class, as those of an image folder do."""
    return len(labels) > 1 and labels[0] != labels[-1] and bool((np.diff(labels) >= 0).all())


def even(labels: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` images, an even sample over classes: the first of each, then the second …, int64 (limit,).

    In the split's order.
    """
    order = np.lexsort((labels, ranks_in_class(labels)))
    return np.sort(order[:limit])


def first(labels: np.ndarray, limit: int) -> np.ndarray:
    """The first `limit` images, or an even sample where images come class by class and the first are of one class."""
    return even(labels, limit) if is_sorted(labels) else np.arange(min(limit, len(labels)))


def part(labels: np.ndarray, name: SplitName) -> np.ndarray:
    """The images of `train[:80%]`; where they come class by class, that part of each class."""
    n = len(labels)
    low, high = name.bounds(n)
    if not is_sorted(labels):
        return np.arange(round(low * n), round(high * n))
    ranks, counts = ranks_in_class(labels), np.bincount(labels)[labels]
    return np.flatnonzero((ranks >= np.round(low * counts)) & (ranks < np.round(high * counts)))


def holdout(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides images into those to train on and those kept back, drawn by the seed within each class.

    Args:
        labels: int64 (n,).
        fraction: part of each class to keep back, rounded; at least one image of a class of two or more, and not all.
        seed: seed of the draw.

    Returns:
        Places of the images to train on and of those kept back, ascending.
    """
    rng = np.random.default_rng((seed, len(labels)))
    kept = []
    for label in np.unique(labels):
        of_class = rng.permutation(np.flatnonzero(labels == label))
        count = round(fraction * len(of_class))
        if len(of_class) > 1:
            count = min(max(count, 1), len(of_class) - 1)
        kept.append(of_class[:count])
    back = np.sort(np.concatenate(kept))
    return np.setdiff1d(np.arange(len(labels)), back), back
