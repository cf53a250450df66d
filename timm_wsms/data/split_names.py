"""Names of splits: their usual spellings, and parts of them such as `train[:80%]`."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from timm_wsms.errors import UserError

FAMILIES = (
    ("train", "training"),
    ("test", "testing"),
    ("validation", "valid", "val", "dev", "eval", "evaluation"),
)
SPLIT_WORDS = frozenset(word for family in FAMILIES for word in family)
SPLIT_COLUMNS = ("split", "subset", "set", "partition", "fold", "phase")  # of tables, in any case
BOUND = r"(-?\d+)(%?)"


class SplitName(NamedTuple):
    """A split, or a part of one.

    Attributes:
        name: of the split.
        start: where the part begins, a fraction of the images if `percent`, else a number of them; None: with the
            first.
        stop: where it ends, likewise; None: with the last.
        text: all of it, as the user wrote it.
    """

    name: str
    start: tuple[float, bool] | None = None
    stop: tuple[float, bool] | None = None
    text: str = ""

    @property
    def is_part(self) -> bool:
        return self.start is not None or self.stop is not None

    def bounds(self, n: int) -> tuple[float, float]:
        """Where the part begins and ends, as fractions of n images, 0 to 1."""
        fractions = [0.0, 1.0]
        for place, bound in enumerate((self.start, self.stop)):
            if bound is not None:
                value, percent = bound
                fraction = value / 100 if percent else value / max(n, 1)
                fractions[place] = min(max(fraction + (value < 0), 0.0), 1.0)
        return fractions[0], max(fractions)


def parse_split(text: str) -> SplitName:
    """Reads the name of a split, or `name[from:to]`, both numbers of images or percentages, as `datasets` has it.

    Raises:
        UserError: the brackets do not hold a part.
    """
    match = re.fullmatch(rf"(.+?)\[(?:{BOUND})?:(?:{BOUND})?\]", text)
    if match is None:
        if text.endswith("]") and "[" in text and ":" in text:
            raise UserError(f"{text!r} is not a part of a split; write train[:80%], train[80%:] or train[100:200].")
        return SplitName(text, text=text)
    name, start, start_percent, stop, stop_percent = match.groups()
    return SplitName(
        name,
        None if start is None else (float(start), bool(start_percent)),
        None if stop is None else (float(stop), bool(stop_percent)),
        text,
    )


def is_split_name(folder: str, named: Collection[str] = ()) -> bool:
    """Whether a folder has the name of a split: a usual one in any case, or one that the settings name."""
    return folder.casefold() in SPLIT_WORDS or folder in named


def find_split(wanted: str, there: Collection[str]) -> str | None:
    """The split that is meant.

    Args:
        wanted: its name. If there is no such split, other spellings count; in place of a test split, a validation
            split does.
        there: the existing names.

    Returns:
        One of the existing names, or None.
    """
    if wanted in there:
        return wanted
    families = [family for family in FAMILIES if wanted.casefold() in family]
    if families == [FAMILIES[1]]:
        families.append(FAMILIES[2])
    by_word = {name.casefold(): name for name in sorted(there)}
    for word in (wanted.casefold(), *(word for family in families for word in family)):
        if word in by_word:
            return by_word[word]
    return None


def split_remarks(columns: Mapping[str, Iterable[Any]]) -> list[str]:
    """Remarks about columns that divide rows into splits, which are not used.

    Args:
        columns: what they hold, by name.
    """
    found = []
    for name, values in columns.items():
        words = sorted({str(value) for value in values if value is not None})
        if name.casefold() in SPLIT_COLUMNS and len(words) > 1 and SPLIT_WORDS & {word.casefold() for word in words}:
            found.append(
                f"WARNING: column {name!r} ({', '.join(words[:5])}) is not used, and these splits are one; give each a"
                " folder or a file of its own"
            )
    return found


def others_like(used: Collection[str], there: Collection[str]) -> list[str]:
    """Remarks about splits that are not used though their names mean the same as a used one's.

    Args:
        used: names of the splits that are used.
        there: names of all splits.
    """
    families = {family: name for name in used for family in FAMILIES if name.casefold() in family}
    return [
        f"WARNING: split {name!r} is not used, {families[family]!r} is; are both meant?"
        for name in there
        for family in FAMILIES
        if name not in used and name.casefold() in family and family in families
    ]
