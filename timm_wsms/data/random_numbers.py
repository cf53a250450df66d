"""Random numbers for an image follow from a key, and no others are affected."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_random_numbers(*key: int) -> None:
    """Seeds the random numbers that transforms draw from: Python's, NumPy's, PyTorch's."""
    seeds = [int(word) for word in np.random.SeedSequence(key).generate_state(3)]
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(seeds[2])  # torch.manual_seed would seed the accelerator's generator, too


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Restores the random number generators on exit, as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
