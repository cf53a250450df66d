"""The order of class names, and names that look like a mistake."""

import re
from collections.abc import Callable, Collection, Sequence

import numpy as np

SHOWN = 10  # class names
EXAMPLES = 3  # groups of names that look alike
NUMBER = re.compile(r"0*(\d+?)(\.0*)?")  # whole, in whatever way it is written


def in_order(names: Collection[str], numbers: bool = True) -> list[str]:
    """Names in sorted order, which follows from the names alone, in every process.

    Args:
        names: each once.
        numbers: whether to sort names as numbers if all of them are whole numbers.
    """
    whole = numbers and all(name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name) if whole else 0, name))


def remarks(class_names: Sequence[str], labels: np.ndarray, split: str) -> list[str]:
    """What looks like a mistake in the names of classes, or in the numbers that stand for them.

    Args:
        class_names: one per class.
        labels: int64 (n,), of the training images.
        split: their split's name.
    """
    names = [str(name) for name in class_names]
    found = [
        f"WARNING: classes {', '.join(map(repr, same))} {how}; are they one?"
        for how, plain in (("differ in spaces or case only", _letters), ("are the same number", _number))
        for same in _alike(names, plain)
    ]
    counts = np.bincount(labels, minlength=len(names))
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if empty and all(name.isdecimal() for name in names):
        found.append(
            f"WARNING: labels count from 0, and no image of split {split!r} is of {listed(empty)}; the network has an"
            " output for each"
        )
    return found


def listed(names: Sequence[str]) -> str:
    """How many classes there are, and the first of their names."""
    count = f"{len(names):,} class{'es' if len(names) != 1 else ''}"
    return f"{count} ({', '.join(map(str, names[:SHOWN]))}{', …' if len(names) > SHOWN else ''})"


def _alike(names: Sequence[str], plain: Callable[[str], str]) -> list[list[str]]:
    """The first groups of names that are the same once they are made plain."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(plain(name), []).append(name)
    return [same for same in groups.values() if len(same) > 1][:EXAMPLES]


def _letters(name: str) -> str:
    return " ".join(name.split()).casefold()


def _number(name: str) -> str:
    """The same for "01" and "1.0" as for "1"; anything else stays."""
    match = NUMBER.fullmatch(name)
    return match[1] if match else name
